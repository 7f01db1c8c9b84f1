"""What serving costs, always against an in-process limit measured in the same run."""
