"""Checks of the options of a training: DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechllm.training import options
from speechllm.training.options import check_deepspeed
from speechllm.training.task import SpeechLLMTask
from speechllm.utils.errors import UserError

RECIPE = Path(__file__).parents[2] / "egs2/must_c/speechllm1/conf"


def test_configuration_of_the_recipe_is_accepted(monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: name)
    configs = list(RECIPE.glob("deepspeed*.json"))
    assert configs
    for config in configs:
        check_deepspeed(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3 is not supported"),
        ('{"zero_optimization": {"stage": 2}}', "needs DeepSpeed: pip install"),
        ('{"zero_optimization": 3}', "not a DeepSpeed configuration"),
        ("[]", "not a DeepSpeed configuration"),
        ("{", "not JSON"),
        (None, "no such DeepSpeed configuration"),
    ],
)
def test_unusable_deepspeed_is_refused_in_one_line(
    tmp_path, monkeypatch, content, message
):
    """The command refuses it before anything is loaded."""
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    config = tmp_path / "deepspeed.json"
    if content is not None:
        config.write_text(content)
    arguments = ["--use_deepspeed", "true", "--deepspeed_config", str(config)]
    with pytest.raises(UserError, match=message) as caught:
        SpeechLLMTask.main(cmd=[*arguments, "--output_dir", str(tmp_path / "exp")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exp").exists()


def test_deepspeed_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match="--use_deepspeed needs --deepspeed_config"):
        SpeechLLMTask.main(cmd=["--use_deepspeed", "true"])
