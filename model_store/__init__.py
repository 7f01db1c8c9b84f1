"""The build path: zoo -> assemble -> weights -> export -> archive. Torch is imported by the modules that need it, never here."""
