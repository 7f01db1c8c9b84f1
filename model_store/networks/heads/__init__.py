"""Heads: from a backbone's feature maps to class scores, boxes or class maps."""
