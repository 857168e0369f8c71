"""Errors, atomic file I/O and length-based batching."""
