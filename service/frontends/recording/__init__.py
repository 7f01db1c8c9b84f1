"""Recording of calls for replay: calls that ended in, files out."""
