"""Exported models, packs and uploads (stages 11, 14, 15)."""
