"""The ESPnet task and everything that training needs (stages 8 and 9)."""

from speechllm.training.espnet_compat import install_replacements

install_replacements()  # before any module here imports espnet2.tasks
