"""`mobilevision tune`: which settings serve a model best on this machine, found by serving it with each of them.

A sweep starts servers and calls them as a client does, so that it measures what callers get.
"""
