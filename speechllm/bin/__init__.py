"""Commands ``python -m speechllm.bin.<name>``; they only parse arguments."""
