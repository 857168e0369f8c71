"""Kaldi data dirs, example dirs and the CTC vocabulary (stages 1 to 5, 7)."""
