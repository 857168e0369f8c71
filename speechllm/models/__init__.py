"""The modules of the model: encoders, bridges, LLM, SpeechLLM."""
