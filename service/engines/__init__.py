"""The engines that run the workers: one folder per engine; `base` has the protocols of all engines."""
