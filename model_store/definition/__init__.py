"""A model of one's own: a small TOML file that says how an archive is made.

`schema` has the keys of the file, `read` reads it, `resolve` fills in what it leaves out. Importing this never imports
torch.
"""
