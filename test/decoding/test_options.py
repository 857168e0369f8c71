"""Search and decoding options: types and ranges."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from speechllm.bin.decode import main
from speechllm.decoding.options import (
    SEARCH_SCHEMA,
    SearchOptions,
    check_decoding_options,
    search_options,
)
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "egs2").glob("*/*/conf/**/decode*.yaml"))


def test_every_option_has_a_rule_that_accepts_its_default():
    assert list(SEARCH_SCHEMA) == [field.name for field in fields(SearchOptions)]
    defaults = {field.name: field.default for field in fields(SearchOptions)}
    assert search_options(defaults) == SearchOptions()


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_configs_of_the_recipes_pass(path):
    check_decoding_options(read_yaml(path), str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "beam_size: 1.5",
            "beam_size 1.5: expected an integer, at least 1 and at most 1000",
        ),
        ("beam_size: 100000", "beam_size 100000: at least 1 and at most 1000"),
        ("beam_size: true", "beam_size True: expected an integer"),
        ("penalty: .nan", "penalty nan: expected a finite number"),
        ("ctc_weight: 7", "ctc_weight 7: from 0 to 1"),
        ("penalty: 1.0e+300", "penalty 1e\\+300: from -10000.0 to 10000.0"),
        ("label_bonus: -1.0e+30", "label_bonus -1e\\+30: from -10000.0 to 10000.0"),
        ("temperature: 1.0e+30", "temperature 1e\\+30: .*at most 10000.0"),
        ("top_k: 10000000000", "top_k 10000000000: at least 0 and at most 1000000"),
        ("candidates: 0", "pre_beam_size 0: at least 1"),
        ("temperature: 0", "temperature 0: .*above 0"),
        ("top_p: 1.5", "top_p 1.5: at most 1 and above 0"),
        ("batch_size: -3", "batch_size -3: at least 1"),
        ("batch_size: many", "batch_size 'many': expected an integer"),
        ("dtype: 16", "dtype 16: one of float32"),
        ("engine: [eager]", "engine .*: one of auto, eager"),
        ("guard: maybe", "guard 'maybe': true or false"),
        ("tokens_per_second: -1", "tokens_per_second -1: from 0"),
        ("beams: 3", "unknown option 'beams'"),
        ("a:\n\tb: 1", "cannot be read as YAML"),
    ],
)
def test_a_wrong_value_is_one_line_before_anything_is_loaded(tmp_path, line, message):
    config = tmp_path / "decode.yaml"
    config.write_text(line + "\n")
    nothing = str(tmp_path / "none")
    arguments = ["--model", nothing, "--examples", nothing, "--output_dir", nothing]
    with pytest.raises(
        UserError, match=f"decode.yaml: .*{message}|decode.yaml: {message}"
    ):
        main(["--config", str(config), *arguments])


def test_numbers_without_a_point_are_numbers():
    assert check_decoding_options({"penalty": "1e-1"}, "x") == {"penalty": 0.1}


def test_weights_of_the_pooled_list():
    good = {"first_pass_beam_size": 5, "rescore_decoder_weight": 0.5}
    assert search_options({**good, "rescore_ctc_weight": 0.5}).beam_size == 1
    with pytest.raises(UserError, match=r"sum to 1\.1: at most 1"):
        search_options({**good, "rescore_ctc_weight": 0.6})
    with pytest.raises(UserError, match="needs first_pass_beam_size"):
        search_options({"rescore_decoder_weight": 0.5})
