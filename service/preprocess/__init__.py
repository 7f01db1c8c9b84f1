"""Preprocessing: encoded pictures in, model inputs out."""
