"""What serving costs, always against an in-process limit and other servers measured in the same run. See README.md."""
