"""`mobilevision eval`: how accurate a served model is, measured through its endpoint on a data set on disk.

The evaluation is a client of the server. It sends the picture files unchanged and scores the replies.
"""
