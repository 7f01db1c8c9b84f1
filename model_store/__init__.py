"""The build path: zoo -> assemble -> weights -> export -> archive. Importing this package imports no torch."""
