"""HTTP server with the OpenAI audio API."""
