"""The ESPnet task and everything that training needs (stages 7 to 9)."""

from speechllm.training.espnet_compat import install_replacements

install_replacements()  # before any module here imports espnet2.tasks
