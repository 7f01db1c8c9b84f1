"""The TorchServe engine: start, watch, configure and call it."""
