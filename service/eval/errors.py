"""Every way an evaluation can end without a report, as one closed tree. Each message says what to do.

    EvalError
    ├── UnusableDataset    the folder is not laid out as expected, or its files contradict each other
    ├── UnusableModel      the server has no such model, or its labels are not those of the data set
    ├── ServerFailed       the server cannot be reached, or refuses in a way that holds for every picture
    ├── ModelChanged       another model, or another version, began to answer during the run
    ├── JournalMismatch    what an interrupted run left belongs to another model or data set
    ├── OutputFailed       the report or the journal cannot be written or read
    └── PackageMissing     a package of the extra `eval` is not installed

A picture that fails is no error: it counts as wrong and is listed in the report.
"""


class EvalError(Exception):
    """An evaluation without a report. What was answered before stays in the journal."""


class UnusableDataset(EvalError):
    """The data set cannot be read."""


class UnusableModel(EvalError):
    """The model cannot be evaluated on this data set."""


class ServerFailed(EvalError):
    """Nobody answers."""


class ModelChanged(EvalError):
    """Answers of two models would be mixed."""


class JournalMismatch(EvalError):
    """The journal is of another run."""


class OutputFailed(EvalError):
    """A file of the evaluation cannot be written or read."""


class PackageMissing(EvalError):
    """An optional package is needed."""
