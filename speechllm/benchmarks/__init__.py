"""Benchmarks of speed, memory and robustness; not part of a recipe."""
