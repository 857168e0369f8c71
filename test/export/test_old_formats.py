"""Folders that release 0.1 wrote (commit 423d882) load, resume and score.

Model, example dir and decode dir are written here literally, without the package's own
writers, so that a change of a file name, a key or a content fails.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from tiny_models import LABELS

from speechllm import SpeechToText
from speechllm.bin.decode import main as decode
from speechllm.bin.score import main as score
from speechllm.utils.errors import UserError

CONFIG = """\
encoder: whisper
encoder_conf:
  model: {encoder}
  trainable_layers: 0
  specaug:
    apply_time_warp: false
    apply_time_mask: false
    freq_mask_width_range:
    - 0
    - 27
    num_freq_mask: 2
bridge: transcript
bridge_conf:
  noise: 1.5
llm: causal_lm
llm_conf:
  model: {llm}
  tuning: lora
  lora:
    r: 2
    lora_alpha: 4
ctc_conf:
  dropout_rate: 0.0
  ctc_type: builtin
  reduce: true
  ignore_nan_grad: null
  zero_infinity: true
  brctc_risk_strategy: exp
  brctc_group_strategy: end
  brctc_risk_factor: 0.0
model_conf:
  ctc_weight: 0.0
  feature_dropout: 0.1
stands_on:
  {encoder}: {encoder_fingerprint}
  {llm}: {llm_fingerprint}
"""
PROMPTS = """\
chat: false
languages:
  en: English
  fr: French
tasks:
  asr: "{speech}\\n{target}:"
  st: "{speech}\\n{target}:"
  asr_st: "{speech}\\n{source}, {target}:"
"""
GUARD = """\
# Made by python -m speechllm.bin.guard_thresholds
clarity: 1.0
ctc_weight: 0.5
groups:
  asr_en:
    rate: 21.5
    least_expansion: 0.42
    most_expansion: 1.31
    repetition: 2
    distance: 0.87
    doubt: 14.2
  st_en_fr:
    rate: 30.1
    least_expansion: 0.2
    most_expansion: 2.9
    repetition: 3
    distance: null
    doubt: null
made_from: 50 utterances of dump/dev
"""
CONFIDENCE = """\
{
  "features": [
    "mean_ctc",
    "least_ctc",
    "mean_llm",
    "least_llm",
    "bias"
  ],
  "weights": [
    1.5,
    0.5,
    2.0,
    1.0,
    -2.5
  ],
  "made_from": "412 words of dump/dev"
}
"""
LINEAR = {  # layer: inputs and outputs
    "mlp.down_proj": (64, 32),
    "mlp.gate_proj": (32, 64),
    "mlp.up_proj": (32, 64),
    "self_attn.k_proj": (32, 16),
    "self_attn.o_proj": (32, 32),
    "self_attn.q_proj": (32, 32),
    "self_attn.v_proj": (32, 16),
}
SHAPES = {
    "bridge.normalization.bias": (32,),
    "bridge.normalization.weight": (32,),
    "bridge.projection.weight": (32, 32),
    "ctc.ctc_lo.bias": (30,),
    "ctc.ctc_lo.weight": (30, 32),
}
for layer, (inputs, outputs) in LINEAR.items():
    for number in (0, 1):
        name = f"llm.causal_lm.model.layers.{number}.{layer}.lora_"
        SHAPES[name + "A.default.weight"] = (2, inputs)
        SHAPES[name + "B.default.weight"] = (outputs, 2)

EXAMPLES = {
    "text": """\
a-1-asr-en Please wait.
a-1-asr_st-fr Please wait.\tVeuillez patienter.
a-1-st-fr Veuillez patienter.
a-2-asr-en Thank you.
a-2-asr_st-fr Thank you.\tMerci.
""",
    "text_ctc": """\
a-1-asr-en please wait
a-1-asr_st-fr please wait
a-1-st-fr please wait
a-2-asr-en thank you
a-2-asr_st-fr thank you
""",
    "utt2task": """\
a-1-asr-en asr en en
a-1-asr_st-fr asr_st en fr
a-1-st-fr st en fr
a-2-asr-en asr en en
a-2-asr_st-fr asr_st en fr
""",
    "utt2num_samples": """\
a-1-asr-en 12000
a-1-asr_st-fr 12000
a-1-st-fr 12000
a-2-asr-en 9000
a-2-asr_st-fr 9000
""",
    "utt2lang": """\
a-1-asr-en en
a-1-asr_st-fr en
a-1-st-fr en
a-2-asr-en en
a-2-asr_st-fr en
""",
    "utt2spk": """\
a-1-asr-en a
a-1-asr_st-fr a
a-1-st-fr a
a-2-asr-en a
a-2-asr_st-fr a
""",
    "spk2utt": "a a-1-asr-en a-1-asr_st-fr a-1-st-fr a-2-asr-en a-2-asr_st-fr\n",
}

DECODE_CONFIG = """\
batch_size: 16
beam_size: 2
nbest: 2
ctc_weight: 0.5
candidates: 5
label_bonus: 1.0
extra_tokens: 6.0
tokens_per_second: 0.0
"""
OPTIONS = [  # as they enter the settings key
    ["beam_size", 2],
    ["candidates", 5],
    ["ctc_weight", 0.5],
    ["extra_tokens", 6.0],
    ["label_bonus", 1.0],
    ["nbest", 2],
    ["tokens_per_second", 0.0],
]
HYPOTHESES = [
    '{"id": "a-1-asr-en", "text": "Please wait.", "score": -1.2346, "tokens": '
    '["ĠPlease", "Ġwait", "."], "ctc_text": "please wait", "nbest": [["Please wait.", '
    '-1.2346], ["Please wait", -2.5]], "confidence": 0.9012, "words": [["Please", '
    '0.12, 0.4, 0.9512], ["wait.", 0.44, 0.7, 0.8512]]}',
    '{"id": "a-1-asr_st-fr", "text": "Veuillez patienter.", "score": -3.25, "tokens": '
    '["ĠPlease", "Ġwait", ".", "ĉ", "ĠVe", "uil", "lez", "Ġpatient", "er", "."], '
    '"ctc_text": "please wait", "nbest": [["Please wait.\\t Veuillez patienter.", '
    '-3.25]], "transcript": "Please wait."}',
    '{"id": "a-1-st-fr", "text": "Veuillez patienter.", "score": -2.75, "tokens": '
    '["ĠVe", "uil", "lez", "Ġpatient", "er", "."], "ctc_text": "please wait", "nbest": '
    '[["Veuillez patienter.", -2.75]]}',
    '{"id": "a-2-asr-en", "text": "", "score": -9.5, "tokens": [], "ctc_text": "", '
    '"nbest": [["", -9.5]], "flags": ["nothing heard"], "unguarded": "Merci été."}',
    '{"id": "a-2-asr_st-fr", "text": "", "score": -4.0, "tokens": ["ĠThank", "Ġyou", '
    '"."], "ctc_text": "thank you", "nbest": [["Thank you.", -4.0]], "transcript": '
    '"Thank you.", "flags": ["malformed"]}',
]
TABLES = {
    "text": """\
a-1-asr-en Please wait.
a-1-asr_st-fr Veuillez patienter.
a-1-st-fr Veuillez patienter.
a-2-asr-en
a-2-asr_st-fr
""",
    "text.transcript": """\
a-1-asr_st-fr Please wait.
a-2-asr_st-fr Thank you.
""",
    "flags": """\
a-2-asr-en nothing heard
a-2-asr_st-fr malformed
""",
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(folder: Path) -> str:
    """Return the fingerprint of a pretrained model as in ``stands_on``."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        size = (folder / name).stat().st_size
        digest.update(f"{name}\0{size}\0{sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def settings(model_dir: Path, examples: Path) -> str:
    """Return the digest in the first line of ``hypotheses.1.jsonl``."""
    digest = hashlib.sha256()
    for file in sorted(model_dir.iterdir()):
        digest.update(f"{file.name}\0{sha256(file)}\n".encode())
    wavs, tasks = (
        [line.split(maxsplit=1) for line in (examples / table).read_text().splitlines()]
        for table in ("wav.scp", "utt2task")
    )
    tasks = [[name, task.split()] for name, task in tasks]
    digest.update(json.dumps([OPTIONS, wavs, tasks, "float32"]).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_whisper, tiny_llm) -> Path:
    """An exported model with guard thresholds and a confidence calibration."""
    folder = tmp_path_factory.mktemp("old") / "model"
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    state = {k: torch.randn(shape, generator=generator) for k, shape in SHAPES.items()}
    save_file(state, folder / "model.safetensors")
    files = {
        "config.yaml": CONFIG.format(
            encoder=tiny_whisper,
            llm=tiny_llm,
            encoder_fingerprint=fingerprint(tiny_whisper),
            llm_fingerprint=fingerprint(tiny_llm),
        ),
        "tokens.txt": "\n".join(LABELS) + "\n",
        "prompts.yaml": PROMPTS,
        "guard.yaml": GUARD,
        "confidence.json": CONFIDENCE,
    }
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """An example dir of two utterances of noise and three tasks."""
    folder = tmp_path_factory.mktemp("old") / "examples"
    folder.mkdir()
    generator = np.random.default_rng(0)
    wavs = []
    for line in EXAMPLES["utt2num_samples"].splitlines():
        name, samples = line.split()
        path = folder / f"{name}.wav"
        soundfile.write(path, generator.normal(size=int(samples)) / 20, 16000)
        wavs.append(f"{name} {path}\n")
    for name, content in {**EXAMPLES, "wav.scp": "".join(wavs)}.items():
        (folder / name).write_text(content, "utf-8")
    return folder


@pytest.fixture
def decode_dir(tmp_path, model_dir, examples) -> Path:
    """A complete decode dir of the model and the examples."""
    folder = tmp_path / "decode"
    folder.mkdir()
    head = f'{{"settings": "{settings(model_dir, examples)}"}}'
    lines = "\n".join([head, *HYPOTHESES]) + "\n"
    (folder / "hypotheses.1.jsonl").write_text(lines, "utf-8")
    for name, content in TABLES.items():
        (folder / name).write_text(content, "utf-8")
    (folder.parent / "decode.yaml").write_text(DECODE_CONFIG)
    return folder


def resume(model_dir: Path, examples: Path, decode_dir: Path) -> None:
    """Run stage 12 again on a decode dir."""
    line = ["--model", model_dir, "--examples", examples, "--output_dir", decode_dir]
    decode([*map(str, line), "--config", str(decode_dir.parent / "decode.yaml")])


def test_old_model_loads_and_decodes(model_dir):
    model = SpeechToText.from_pretrained(model_dir)
    wave = np.random.default_rng(1).normal(size=12000).astype(np.float32) / 20
    limits = {"tokens_per_second": 0.0, "extra_tokens": 6.0}
    (plain,) = model.transcribe([wave], guard=False, word_times=True, **limits)
    assert plain.text and plain.ctc_text and not plain.unguarded
    assert plain.words and all(0 < word.confidence < 1 for word in plain.words)
    (guarded,) = model.transcribe([wave], **limits)
    assert guarded.flags == ["nothing heard"] and guarded.text == ""
    assert guarded.unguarded == plain.text
    for task in ("st", "asr_st"):
        (result,) = model.transcribe([wave], task, "en", "fr", guard=False, **limits)
        assert (result.transcript is None) == (task == "st")


def test_old_fingerprints_are_verified(model_dir, tmp_path, caplog):
    for name in ("model.safetensors", "tokens.txt", "prompts.yaml"):
        (tmp_path / name).symlink_to(model_dir / name)
    config = (model_dir / "config.yaml").read_text()
    head, _, digest = config.rstrip().rpartition(" ")
    (tmp_path / "config.yaml").write_text(f"{head} {digest[::-1]}\n")
    SpeechToText.from_pretrained(model_dir, strict=True)
    assert not caplog.records
    with pytest.raises(UserError, match="which release 0.2 compared too"):
        SpeechToText.from_pretrained(tmp_path, strict=True)
    SpeechToText.from_pretrained(tmp_path)
    assert "other weights" in caplog.text


def test_complete_old_decode_dir_is_kept(model_dir, examples, decode_dir, monkeypatch):
    before = (decode_dir / "hypotheses.1.jsonl").read_bytes()
    for name in TABLES:
        (decode_dir / name).unlink()
    monkeypatch.setattr(SpeechToText, "from_pretrained", None)  # nothing to decode
    resume(model_dir, examples, decode_dir)
    assert (decode_dir / "hypotheses.1.jsonl").read_bytes() == before
    for name, content in TABLES.items():
        assert (decode_dir / name).read_text("utf-8") == content


def test_partial_old_decode_dir_is_resumed(model_dir, examples, decode_dir):
    """Missing and failed examples are decoded and appended; the rest is kept."""
    path = decode_dir / "hypotheses.1.jsonl"
    head, _, joint, _, _, other = path.read_text("utf-8").splitlines(keepends=True)
    failed = '{"id": "a-2-asr-en", "text": "", "failed": true}\n'
    kept = "".join([head, joint, failed, other])
    path.write_text(kept, "utf-8")
    resume(model_dir, examples, decode_dir)
    found = path.read_text("utf-8")
    assert found.startswith(kept)
    added = {e["id"]: e for e in map(json.loads, found[len(kept) :].splitlines())}
    assert set(added) == {"a-1-asr-en", "a-1-st-fr", "a-2-asr-en"}
    keys = {"id", "text", "score", "tokens", "ctc_text", "nbest"}
    keys |= {"audio_seconds", "decoding_seconds", "device"}
    timing = json.loads((decode_dir / "rtf.json").read_text())
    assert timing["examples"] == 3  # those of the earlier release have no times
    assert set(added["a-1-st-fr"]) - {"flags", "unguarded"} == keys
    assert set(added["a-2-asr-en"]) == keys | {"flags", "unguarded"}
    assert added["a-2-asr-en"]["flags"] == ["nothing heard"]
    assert not list(decode_dir.glob("*.previous"))
    text = (decode_dir / "text").read_text("utf-8").splitlines()
    assert text[1] == "a-1-asr_st-fr Veuillez patienter."


def test_old_decode_dir_is_scored(examples, decode_dir, capsys):
    score(["--examples", str(examples), "--decode_dir", str(decode_dir)])
    lines = capsys.readouterr().out.splitlines()
    lines = [line.partition(" ± ")[0] for line in lines]  # without intervals
    assert {
        "asr en wer 50.00",
        "st en-fr chrf 100.00",
        "st en-fr ter 0.00",
        "asr_st en-fr wer 0.00",
        "asr_st en-fr malformed 50.00",
    } <= set(lines), lines
    folders = {path.name for path in decode_dir.glob("score_*")}
    assert folders == {"score_asr_en", "score_asr_st_en_fr", "score_st_en_fr"}
    for folder in folders:
        names = {path.name for path in (decode_dir / folder).glob("[!.]*")}
        assert names == {"scores.json", "scores.tsv", "alignment.txt"}
