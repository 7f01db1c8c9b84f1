"""The demo data set, which is drawn by code, and the committed demo checkpoints."""
