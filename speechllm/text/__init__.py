"""Text, labels, prompts and tasks; nothing here imports a model."""
