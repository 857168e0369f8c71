"""Lengths of examples, compared with those that ESPnet collects from the audio."""

from __future__ import annotations

import shutil

import pytest
from fixtures_training import UTTERANCES

from speechllm.bin.collect_shapes import main
from speechllm.utils.errors import UserError


@pytest.fixture
def arguments(train, examples, tmp_path):
    """Return the arguments after a training whose config they use."""
    stats = tmp_path / "espnet"
    ids = tmp_path / "ids"
    ids.write_text("".join(f"u{i} x\n" for i in range(UTTERANCES)))
    train(
        stats,
        *("--collect_stats", "true"),
        *("--train_shape_file", str(ids), "--valid_shape_file", str(ids)),
        batch_type="unsorted",
    )
    folder = tmp_path / "examples"
    shutil.copytree(examples, folder)
    return [
        *("--train", folder, "--valid", folder, "--output", tmp_path / "shapes"),
        *("--config", tmp_path / "config.yaml", "--prompts", folder / "prompts.yaml"),
        *("--ctc_token_list", folder / "tokens.txt"),
    ]


def run(arguments):
    main([str(argument) for argument in arguments])


def test_lengths_equal_those_of_espnet(arguments, tmp_path, capsys):
    run(arguments)
    assert f"lengths of {UTTERANCES} training examples" in capsys.readouterr().out
    for kind in ("train", "valid"):
        for name in ("speech", "text", "text_ctc", "prompt_prefix", "prompt_suffix"):
            ours, espnets = (
                sorted((tmp_path / f / kind / f"{name}_shape").read_text().splitlines())
                for f in ("shapes", "espnet")
            )
            assert ours == espnets


def test_lengths_depend_on_data_and_tokenizers_only(arguments, tmp_path, capsys):
    run(arguments)
    with open(tmp_path / "config.yaml", "a") as stream:
        stream.write("# a comment\naccum_grad: 3\n")
    capsys.readouterr()
    run(arguments)
    assert "up to date" in capsys.readouterr().out
    path = tmp_path / "examples" / "text"
    first, *others = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([f"{first} and more", *others]) + "\n", "utf-8")
    before = (tmp_path / "shapes/train/text_shape").read_text()
    run(arguments)
    assert (tmp_path / "shapes/train/text_shape").read_text() != before


def test_missing_rows_and_tables_are_named(arguments, tmp_path):
    folder = tmp_path / "examples"
    (folder / "text_ctc").write_text("u0 a\n")
    with pytest.raises(UserError, match="u1 is not in text_ctc; run stage 5 again"):
        run(arguments)
    (folder / "text_ctc").unlink()
    with pytest.raises(UserError, match="no text_ctc; run stage 5 first"):
        run(arguments)
    assert not (tmp_path / "shapes").exists()
