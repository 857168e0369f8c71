"""Initialisation of a training from Nue-ASR's released format."""

from __future__ import annotations

import pytest
import torch
from nue_asr_reference import build_similar_model, check

from speechllm import SpeechToText
from speechllm.text.prompts import Prompts
from speechllm.training.initialization import load_init_param
from speechllm.utils.errors import UserError


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_initialisation_from_a_released_model(
    tmp_path, nue_reference, nue_waves, nue_tokens, tuning
):
    """The model decodes like the released one, since new adapters are zero."""
    model = build_similar_model(tmp_path, nue_reference, tuning)
    load_init_param(str(nue_reference.folder), model, False, "cpu")
    prompts = Prompts({"asr": "<s>{speech}[SEP]"}, {"ja": "Japanese"}, origin="test")
    released = {"min_tokens": 2, "tokens_per_second": 4.0, "retry_truncated": False}
    speech_to_text = SpeechToText(model, prompts, released)
    check(speech_to_text, nue_reference, nue_waves, nue_tokens, 4)
    # all tensors differ from the pretrained models, so the next checkpoint has all
    held = set(model.state_dict())
    assert "ctc.ctc_lo.weight" in held
    layer = "llm.causal_lm.gpt_neox.layers.0.attention.query_key_value."
    base = layer + ("base_layer.weight" if tuning == "lora" else "weight")
    assert base in held and (layer + "lora_A.default.weight" in held) == (
        tuning == "lora"
    )


def test_lora_initialisation_from_full_training(tmp_path, nue_reference):
    whole = build_similar_model(tmp_path, nue_reference, "full")
    torch.save(whole.state_dict(), tmp_path / "1epoch.pth")
    adapted = build_similar_model(tmp_path, nue_reference, "lora")
    load_init_param(str(tmp_path / "1epoch.pth"), adapted, False, "cpu")
    state = adapted.state_dict()
    for name, value in whole.state_dict().items():
        found = state.get(name)
        if found is None:  # below an adapter
            stem, _, last = name.rpartition(".")
            found = state[f"{stem}.base_layer.{last}"]
        assert torch.equal(found, value)
    load_init_param(f"{tmp_path / '1epoch.pth'}:bridge", adapted, False, "cpu")


def test_mismatched_initialisation_names_the_tensors(tmp_path, nue_reference):
    model = build_similar_model(tmp_path, nue_reference, "lora")
    model.bridge.projection = torch.nn.Linear(32, 40)
    message = (
        r"2 tensors do not fit this model: bridge\.projection\.weight \(48, 32\) "
        r"instead of \(40, 32\), bridge\.projection\.bias"
    )
    with pytest.raises(UserError, match=message):
        load_init_param(str(nue_reference.folder), model, False, "cpu")
