"""The web page of ``speechllm demo``."""
