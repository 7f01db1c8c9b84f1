"""Compare the networks and post-processing of this project with golden outputs of the authors' code."""
