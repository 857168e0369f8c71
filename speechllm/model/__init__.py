"""Import path of release 0.1; the modules are in :mod:`speechllm.models`."""
