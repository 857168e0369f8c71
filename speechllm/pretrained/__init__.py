"""Pretrained models: resolve a name to a local folder of weights."""
