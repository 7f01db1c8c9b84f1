"""A data set that draws itself: what `mobilevision eval` can be tried on without a download."""
