"""Delivery of archives: a folder is published in an object store, and copied from there to where it is served."""
