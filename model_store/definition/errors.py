"""What is wrong with a definition."""


class DefinitionError(ValueError):
    """A definition, or a file that it names, is wrong. The message names the file, the key and the remedy."""
