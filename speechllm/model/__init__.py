"""The model: speech encoder, bridge, decoder-only LLM, and what joins them."""
