"""Export of trained models: model folders, zips and uploads (stages 10, 14, 15)."""
