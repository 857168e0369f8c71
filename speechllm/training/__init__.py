"""The ESPnet task and all that training needs (stages 7 to 10)."""

from speechllm.training import espnet_compat  # noqa: F401
