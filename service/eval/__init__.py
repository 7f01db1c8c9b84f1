"""`mobilevision eval`: how accurate a served model is, measured through its endpoint on a data set on disk.

A client of the service and nothing more: pictures go out as the files they are, answers are scored as they come back.
"""
