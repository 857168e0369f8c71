"""Pretrained weights: from a name to a local folder."""
