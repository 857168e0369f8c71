"""Scores of decode dirs (stage 13)."""
