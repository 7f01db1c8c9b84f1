"""What is said of a checkpoint that is no use; never imports torch, so that whoever only reports it need not."""


class CheckpointError(Exception):
    """A checkpoint cannot be read or does not fit; the three lists are empty where the file could not be read.

    `shapes` holds (name, shape in the checkpoint, shape in the network).
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.shapes = shapes
