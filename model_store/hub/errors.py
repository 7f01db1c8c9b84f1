"""What is wrong with a folder of a model hub."""


class HubError(ValueError):
    """A folder cannot be read, or says two things. The message is one line, and names the places and the remedy."""
