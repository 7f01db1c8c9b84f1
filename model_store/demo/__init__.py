"""Demo checkpoints: a data set that draws itself, and the training of one small model per task on it."""
