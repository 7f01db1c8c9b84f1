"""`mobilevision tune`: which settings serve a model best on this machine, found by serving it with each and calling it.

Starts servers and is their client, nothing more: what it measures is what callers get.
"""
