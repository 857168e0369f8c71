"""Scoring of decode dirs and reports of the scores (stage 13)."""
