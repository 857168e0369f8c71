"""Import path of release 0.1; the modules are in speechllm.models."""
