"""Tasks: the served module of each task, its outputs, and how two sets of outputs are compared."""
