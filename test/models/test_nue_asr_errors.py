"""Nue-ASR's released format: damaged folders and invalid input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nue_asr_reference import RATE, Reference, change_config, change_weights

from speechllm import SpeechToText
from speechllm.utils.errors import UserError


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Reference:
    """A tiny model in the released format."""
    return Reference(tmp_path_factory.mktemp("bad") / "released", "group", seed=10)


@pytest.fixture
def copy(tmp_path, released) -> Path:
    """A copy of its folder to damage."""
    return Path(shutil.copytree(released.folder, tmp_path / "copy"))


def test_weights_of_another_shape_are_named(copy):
    def change(state):
        state["bridge_proj.bias"] = torch.zeros(3)
        state["bridge_convs.0.weight"] = torch.zeros(32, 32, 5)

    change_weights(copy, change)
    message = (
        r"2 weights are of another shape.*bridge_convs\.0\.weight \(32, 32, 5\) "
        r"instead of \(32, 32, 4\), bridge_proj\.bias \(3,\)"
    )
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_config_of_a_larger_model_takes_no_memory(copy):
    """GPT-NeoX's default configuration has 20 billion weights."""
    change_config(copy, lambda config: config.update(llm_config={}))
    message = r"30 weights are of another shape.*bridge_proj\.bias \(48,\) instead"
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_missing_and_unknown_weights_are_named(copy):
    change_weights(copy, lambda state: state.pop("bridge_proj.bias"))
    with pytest.raises(UserError, match=r"1 weights are missing: bridge_proj\.bias"):
        SpeechToText.from_pretrained(copy)
    change_weights(
        copy,
        lambda state: state.update(
            {"bridge_proj.bias": torch.zeros(48), "bridge_convs.2.bias": torch.ones(1)}
        ),
    )
    with pytest.raises(
        UserError, match=r"not part of this model: bridge_convs\.2\.bias"
    ):
        SpeechToText.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("llm_config"), "the key 'llm_config' is missing"),
        (lambda c: c.update(audio_encoder_config=3), "'audio_encoder_config'"),
        (lambda c: c["llm_config"].update(num_attention_heads=5), "not a valid config"),
        (lambda c: c.update(bridge_conv_stride=[2]), "no model can be built from it"),
        (lambda c: c["llm_config"].update(vocab_size=-1), "no model can be built"),
        (lambda c: c["llm_config"].update(hidden_size="x"), "not a valid config"),
        (lambda c: c.update(model_type="hubert"), "no model"),
    ],
)
def test_broken_configs(copy, change, message):
    change_config(copy, change)
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_broken_files(copy):
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a safetensors file, or cut off"):
        SpeechToText.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model.safetensors"):
        SpeechToText.from_pretrained(copy)


class Evil:
    """Pickle that touches a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_with_code_are_refused(copy, released, tmp_path):
    (copy / "model.safetensors").unlink()
    evil = Evil(tmp_path / "harm")
    torch.save({**released.state(), "x": evil}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="the weights cannot be read"):
        SpeechToText.from_pretrained(copy)
    assert not evil.path.exists()


def test_missing_or_broken_tokenizer(copy):
    (copy / "spiece.model").write_bytes(b"none")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        SpeechToText.from_pretrained(copy)
    (copy / "spiece.model").unlink()
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        SpeechToText.from_pretrained(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sampling_rate": 8000}', "sampling_rate 8000, but the input is 16000 Hz"),
        ('{"sampling_rate": "fast"}', "sampling_rate 'fast'"),
        ('{"sampling_rate": null}', "sampling_rate None"),
        ("16000", "preprocessor_config.json: cannot be read"),
        ("{", "preprocessor_config.json: not JSON"),
    ],
)
def test_unsupported_sampling_rate(copy, content, message):
    (copy / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_encoder_with_another_sampling_rate(tmp_path, nue_reference):
    from speechllm.models.hubert_encoder import HubertEncoder

    nue_reference.hubert.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(ValueError, match="8000, but the input is 16000 Hz"):
        HubertEncoder(str(tmp_path), normalize=False)


def broken_rate(folder: Path) -> Path:
    """Write a WAV file with 0 Hz in its header."""
    import io

    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(1600), RATE, format="WAV")
    content = bytearray(stream.getvalue())
    content[24:28] = bytes(4)
    (folder / "zero.wav").write_bytes(content)
    return folder / "zero.wav"


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda c: (c / "config.json").unlink(), ["{wav}"], "no model"),
        (
            lambda c: change_config(c, lambda config: config.pop("llm_config")),
            ["{wav}"],
            "the key 'llm_config' is missing",
        ),
        (
            lambda c: change_weights(
                c, lambda state: state.update({"bridge_proj.bias": torch.zeros(3)})
            ),
            ["{wav}"],
            r"1 weights are of another shape.*bridge_proj\.bias \(3,\)",
        ),
        (None, ["{folder}/none"], "the audio file does not exist"),
        (None, ["{zero}"], None),
        (None, [], "nothing to transcribe"),
        (None, ["{wav}", "--task", "tts"], "no prompt for task 'tts'"),
        (None, ["{wav}", "--language", "en"], "'en' has no name"),
        (None, ["{wav}", "--output", "{wav}/out"], "cannot be written"),
    ],
)
def test_invalid_input_on_the_command_line(
    capsys, tmp_path, copy, nue_waves, damage, arguments, message
):
    """The messages are those of the API; an unreadable recording is not fatal."""
    import soundfile

    from speechllm import cli

    if damage is not None:
        damage(copy)
    soundfile.write(tmp_path / "a.wav", nue_waves[0], RATE)
    names = {
        "wav": tmp_path / "a.wav",
        "folder": tmp_path,
        "zero": broken_rate(tmp_path),
    }
    words = [argument.format(**names) for argument in arguments]
    command = ["transcribe", "--model", str(copy), *words]
    if message is not None:
        with pytest.raises(UserError, match=message):
            cli.main(command)
        return
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and f"error: {words[0]}: " in captured.err
