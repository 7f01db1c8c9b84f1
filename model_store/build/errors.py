"""Why an export failed. Never imports torch, so that a command line can report the error without it."""


class ExportError(Exception):
    """The scripted module could not be made, or does not do what the eager module does.

    The message is one line. `detail` holds the traceback of the failed process, or is empty. `report` has one line per
    check that was made of a module that was not written here.
    """

    def __init__(self, message: str, *, detail: str = "", report: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.detail = detail
        self.report = report
