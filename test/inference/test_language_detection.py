"""Detection of the spoken language by Whisper's own decoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_models import write_tiny_model

from speechllm import SpeechToText, cli, transcribe_long
from speechllm.audio.io import load_audio
from speechllm.inference import language_detection
from speechllm.inference.language_detection import LanguageDetector, find_whisper
from speechllm.utils.errors import UserError

SHORT = {"tokens_per_second": 0.0, "extra_tokens": 4.0}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, smollm2) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("language") / "model", smollm2)


@pytest.fixture(scope="module")
def speech(asterisk_dir) -> dict[str, np.ndarray]:
    """Return the same prompt in English and French."""
    root = asterisk_dir / "usr/share/asterisk/sounds"
    folders = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June"}
    return {c: load_audio(root / f / "vm-tooshort.g722") for c, f in folders.items()}


def test_languages_equal_those_of_transformers(whisper_base, speech):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    codes = ["es", "fr", "en", "xx"]
    detect = LanguageDetector(whisper_base, codes, "cpu")
    assert detect.languages == ["es", "fr", "en"]
    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_base)
    processor = WhisperProcessor.from_pretrained(whisper_base)
    for code, wave in speech.items():
        features = processor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            token = whisper.detect_language(features.input_features)
        assert processor.tokenizer.decode(token) == f"<|{code}|>"
        language, probability = detect(wave)
        assert language == code and 0.5 < probability <= 1
    detect.languages = ["es"]  # French is in none of the model's languages
    language, probability = detect(speech["fr"])
    assert language == "es" and probability < 0.2


def test_auto_gives_each_recording_its_language(
    capsys, tmp_path, monkeypatch, model_dir, speech, whisper_base
):
    monkeypatch.setattr(language_detection, "find_whisper", lambda _: whisper_base)
    silence = np.zeros(16000 * 31)
    for name, wave in {**speech, "silent": silence}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000)
    tasks = []
    decode = SpeechToText.decode

    def spy(self, waves, requested, *arguments, **options):
        tasks.extend((len(w), t.source, t.target) for w, t in zip(waves, requested))
        return decode(self, waves, requested, *arguments, **options)

    monkeypatch.setattr(SpeechToText, "decode", spy)
    command = ["transcribe", "--model", str(model_dir), "--language", "auto"]
    command += ["--format", "json", "--extra_tokens", "4", "--tokens_per_second", "0"]
    command += [str(tmp_path / f"{n}.wav") for n in ("fr", "silent", "en")]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    entries = [json.loads(line) for line in captured.out.splitlines()]
    assert [e.get("language") for e in entries] == ["fr", None, "en"]
    assert all(e["language_probability"] > 0.5 for e in entries[::2])
    assert sorted(tasks) == sorted((len(w), c, c) for c, w in speech.items())
    share = f"{entries[0]['language_probability']:.0%}"
    assert f"{tmp_path / 'fr.wav'}: language fr ({share})" in captured.err


def test_language_is_detected_in_the_first_speech(model_dir, speech):
    """Of a long recording, half a minute of speech without merged segments."""
    model = SpeechToText.from_pretrained(model_dir)
    pause = np.zeros(16000, np.float32)
    stream = [part for _ in range(20) for part in (pause, speech["en"])]
    seen = []

    def detect(samples):
        seen.append(len(samples) / 16000)
        return "fr", 0.75

    (found,) = transcribe_long(model, [stream], detect=detect, **SHORT)
    assert len(seen) == 1 and 30 <= seen[0] < 50
    assert (found.language, found.language_probability) == ("fr", 0.75)
    (plain,) = transcribe_long(model, [stream], language="fr", **SHORT)
    assert plain.result == found.result

    def fail(samples):
        raise RuntimeError("broken")

    broken, fine = transcribe_long(model, [stream, stream[:2]], detect=fail, **SHORT)
    assert broken.error and "broken" in broken.error and broken.result is None
    assert fine.error is not None


def test_other_encoders_are_refused(tmp_path, tiny_model):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    with pytest.raises(UserError, match="trained on one language only; give --lang"):
        find_whisper(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "encoder": "hubert"}))
    with pytest.raises(UserError, match="needs a Whisper encoder, and that of"):
        recording = tmp_path / "a.wav"
        recording.touch()
        words = ["--model", str(folder), "--language", "auto", str(recording)]
        cli.main(["transcribe", *words])
