"""The Python API and stage 12."""
