"""Every way an evaluation can end without a report, as one closed tree. Each message says what to do.

    EvalError
    ├── UnusableDataset    the folder has an unknown layout, or its files contradict each other
    ├── UnusableModel      the server has no such model, or the data set has other labels than the model
    ├── ServerFailed       the server cannot be reached, or refuses for a reason that holds for every picture
    ├── ModelChanged       another model or version began to answer during the run
    ├── JournalMismatch    the journal of an interrupted run belongs to another model or data set
    ├── OutputFailed       the report or the journal cannot be written or read
    └── PackageMissing     a package of the extra `eval` is not installed

A picture that fails raises nothing: it counts as wrong, and the report lists it.
"""


class EvalError(Exception):
    """The evaluation ended without a report. The journal keeps the answers so far."""


class UnusableDataset(EvalError):
    """The data set cannot be read."""


class UnusableModel(EvalError):
    """The model cannot be evaluated on this data set."""


class ServerFailed(EvalError):
    """The server does not answer, or refuses every picture."""


class ModelChanged(EvalError):
    """A report would mix the answers of two models."""


class JournalMismatch(EvalError):
    """The journal belongs to another run."""


class OutputFailed(EvalError):
    """A file of the evaluation cannot be written or read."""


class PackageMissing(EvalError):
    """An optional package is needed and not installed."""
