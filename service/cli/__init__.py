"""The commands that run or roll out a server."""
