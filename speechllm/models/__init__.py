"""Neural networks: speech encoders, bridges, the LLM and the model of all three."""
