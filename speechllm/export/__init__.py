"""Export of trained models: model folders, zips and uploads (stages 11, 14, 15)."""
