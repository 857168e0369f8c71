"""Inference: the Python API, long recordings, the guard and stage 12."""
