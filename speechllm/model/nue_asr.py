"""Import path of release 0.1 for :mod:`speechllm.models.nue_asr`."""
