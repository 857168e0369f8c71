"""Kaldi data dirs and example dirs (stages 2 to 5 and 7)."""
