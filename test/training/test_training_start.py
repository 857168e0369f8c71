"""A training that resumes with another --init_param than it began with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import LABELS

from speechllm.training.initialization import require_same_start
from speechllm.utils.errors import UserError


def test_a_training_does_not_go_on_from_another_start(train, tmp_path):
    state = {"ctc.ctc_lo.bias": torch.zeros(len(LABELS))}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "warm.pth")
    starts = {name: str(tmp_path / name / "warm.pth") for name in ("a", "b")}
    exp = tmp_path / "exp"
    train(exp, "--init_param", starts["a"], max_epoch=1)
    config = (exp / "config.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        train(exp, "--init_param", starts["b"])
    assert str(caught.value).startswith(
        f"{exp}: this training began with --init_param {starts['a']}, so {starts['b']} "
        "would have no effect; to train from there, use another folder"
    )
    with pytest.raises(UserError, match="so none would have no effect"):
        train(exp)
    assert (exp / "config.yaml").read_bytes() == config
    (exp / "config.yaml").rename(tmp_path / "config.yaml")  # the message's way on
    train(exp, "--init_param", starts["b"])
    assert (exp / "2epoch.pth").exists()


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ([], [], True),
        (["a/w.pth"], ["a/w.pth"], True),
        (["a/w.pth"], ["./a/link.pth"], True),
        (["a/w.pth:ctc"], ["./a/w.pth:ctc"], True),
        (["a/w.pth:ctc"], ["a/w.pth"], False),
        (["a/w.pth"], ["b/w.pth"], False),
        (["a/w.pth"], ["a/w.pth", "b/w.pth"], False),
        (["a/w.pth"], [], False),
        (["me/model"], ["me/model"], True),  # of the hub
        (["me/model"], ["you/model"], False),
        (["a/w.pth"], ["me/model"], False),
        (["old/exp/a/w.pth"], ["/new/exp_v1/a/w.pth"], True),  # the experiment moved
        (["old/exp/a/w.pth"], ["/new/exp_v1/b/w.pth"], False),
    ],
)
def test_names_of_the_same_start(tmp_path, monkeypatch, before, now, same):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "w.pth").write_text(name)
    Path("a/link.pth").symlink_to("w.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"init_param": before}))
    if same:
        require_same_start(tmp_path, now)
    else:
        with pytest.raises(UserError, match="this training began with"):
            require_same_start(tmp_path, now)


def test_a_state_that_the_user_has_put_there_has_any_start(tmp_path):
    require_same_start(tmp_path, ["a.pth"])
