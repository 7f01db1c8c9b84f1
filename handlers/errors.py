"""Why a worker cannot load an archive or run a batch. Imports nothing."""


class RuntimeLoadError(RuntimeError):
    """The archive cannot be served: it was altered, contradicts its own card, or a setting is wrong."""


class BatchError(ValueError):
    """The batch does not fit the card. The gateway built it, so this is a bug or a mismatched archive."""


class ModuleRunError(RuntimeError):
    """The module itself raised on a batch that fits its card."""


class DeviceLost(RuntimeError):
    """The GPU does not answer this process any more; only a new process can use it again."""


class EngineUnfit(RuntimeError):
    """A network engine cannot run this archive here, or does not compute what the reference computes."""
