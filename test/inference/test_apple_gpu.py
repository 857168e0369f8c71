"""Decoding on a simulated Apple GPU, which has no float64: the results of the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_hubert
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.inference.guard_thresholds import Limits, Thresholds
from speechllm.models.ctc_alignment import forced_align
from speechllm.models.hubert_encoder import HubertEncoder
from speechllm.text.tasks import Task

SEARCHES: dict[str, dict] = {
    "greedy": {"word_times": True},
    "sampling": {"sampling": True, "top_k": 5},
    "joint": {"beam_size": 3, "ctc_weight": 0.3},
    "rescoring": {"beam_size": 3, "rescore_ctc_weight": 0.3},
    "hotwords": {"beam_size": 3, "hotwords": ["hello"]},
    "guard": {"guard": True},
}
SHORT = {"tokens_per_second": 0.0, "extra_tokens": 4.0}
ANY_DEVICE = (Tensor.__getitem__, Tensor.__setitem__, Tensor.cpu, Tensor.to)


class AppleGPU(TorchFunctionMode):
    """While it is active, tensors are on the device ``mps``, and float64 is refused.

    On the CPU are those of ``cpu()`` and those made without a device, and results of
    such tensors; they do not mix with those of the GPU.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_cpu = [hasattr(x, "made_on_cpu") for x in tensors]
        if func == Tensor.device.__get__:
            return torch.device("cpu" if on_cpu[0] else "mps")
        sized = {place for place, x in zip(on_cpu, tensors) if x.dim()}
        if len(sized) > 1 and func not in ANY_DEVICE:
            raise RuntimeError(f"{func}: tensors on two devices")
        devices = [x for x in tree_leaves((args, kwargs)) if is_device(x)]
        if devices or func is Tensor.cpu:
            to_cpu = func is Tensor.cpu or devices[0].type == "cpu"
        else:
            to_cpu = on_cpu[-1] if func is Tensor.to else all(on_cpu)
        real = [torch.device("cpu") if is_device(x) else x for x in args]
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        found = func(*real, **kwargs)
        if func in (Tensor.cpu, Tensor.to):
            found = found.view_as(found)  # another object, with its own mark
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and to_cpu:
                x.made_on_cpu = True  # type: ignore[attr-defined]
            elif isinstance(x, Tensor) and x.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return found


def is_device(value: object) -> bool:
    return isinstance(value, torch.device)


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    model = SpeechToText.from_pretrained(tiny_model)
    tight = Limits(1e9, 0.0, max_length_ratio=0.5, repetition=0, ctc_margin=0.0)
    model.set_thresholds(Thresholds(0.0, 0.5, {"asr_en": tight}))
    return model


@pytest.mark.parametrize("name", SEARCHES)
def test_results_are_those_of_the_cpu(model, speech_file, name):
    speech = load_audio(speech_file)[:16000]
    options = {"guard": False, **SHORT, **SEARCHES[name]}
    expected = model.transcribe([speech, speech[:9000]], **options)
    with AppleGPU():
        found = model.transcribe([speech, speech[:9000]], **options)
    assert [r.entry() for r in found] == [r.entry() for r in expected]


@pytest.mark.parametrize("pieces", [None, ["<blank>", "<unk>", "a", "b", "ab", "▁a"]])
def test_ctc_scores_are_those_of_the_cpu(pieces):
    logits = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(1))
    batch = EncodedBatch(
        [Task("asr", "en", "en")],
        [np.zeros(16000, np.float32)],
        [torch.zeros(1, 1)],
        logits,
        torch.tensor([9]),
        [""],
        [0],
        pieces=pieces,
    )
    texts = [[*map(ord, "abab")], [*map(ord, "b")]] if pieces else [[2, 3, 2], []]
    expected = replace(batch).ctc_scores(0, texts)
    with AppleGPU():
        assert batch.ctc_scores(0, texts) == expected


def test_forced_alignment_is_that_of_the_cpu():
    log_probs = torch.randn(9, 5).log_softmax(1)
    expected = forced_align(log_probs, [1, 2, 2])[0].tolist()
    with AppleGPU():
        assert forced_align(log_probs, [1, 2, 2])[0].tolist() == expected


@torch.inference_mode()
def test_hubert_features_are_those_of_the_cpu(tmp_path):
    encoder = HubertEncoder(str(write_tiny_hubert(tmp_path / "hubert", "group"))).eval()
    speech, lengths = torch.randn(2, 9000), torch.tensor([9000, 7000])
    expected, _ = encoder(speech, lengths)
    with AppleGPU():
        features, _ = encoder(speech, lengths)
        assert features.device.type == "mps"
    assert torch.equal(features, expected)
