"""Decoding an example dir: resuming, shards, unreadable audio and wrong arguments.

The texts are compared with those of decoding each utterance alone.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechllm.audio.io import load_audio
from speechllm.bin.decode import main
from speechllm.data.kaldi_table import read_table, write_table
from speechllm.inference.decode_examples import decode_examples, settings_key
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.inference.transcribe_recordings import file_states
from speechllm.utils.errors import UserError

OPTIONS = {"tokens_per_second": 0.0, "extra_tokens": 6.0}  # six tokens at most
COUNT = 7


@pytest.fixture(scope="module")
def original(tmp_path_factory, speech_file) -> Path:
    """Return an example dir of seven excerpts of speech, two of them to translate."""
    folder = tmp_path_factory.mktemp("decode") / "examples"
    folder.mkdir()
    speech = load_audio(speech_file)
    wavs, tasks, samples = {}, {}, {}
    for index in range(COUNT):
        piece = speech[3000 * index : 3000 * index + 8000 + 2500 * index]
        name = f"en-{index}"
        soundfile.write(folder / f"{name}.wav", piece, 16000)
        wavs[name] = str(folder / f"{name}.wav")
        tasks[name] = "st en fr" if index % 3 == 2 else "asr en en"
        samples[name] = str(len(piece))
    write_table(folder / "wav.scp", wavs)
    write_table(folder / "utt2task", tasks)
    write_table(folder / "utt2num_samples", samples)
    return folder


@pytest.fixture
def examples(original, tmp_path) -> Path:
    """Return a copy of the tables that a test may change."""
    folder = tmp_path / "examples"
    folder.mkdir()
    for name in ("wav.scp", "utt2task", "utt2num_samples"):
        shutil.copy(original / name, folder)
    return folder


@pytest.fixture(scope="module")
def expected(original, tiny_model) -> str:
    """Return the content of ``text`` from decoding each utterance alone."""
    model = SpeechToText.from_pretrained(tiny_model)
    lines = []
    tasks = read_table(original / "utt2task")
    for name, path in read_table(original / "wav.scp").items():
        task, source, target = tasks[name].split()
        (result,) = model.transcribe([path], task, source, target, **OPTIONS)
        lines.append(f"{name} {' '.join(result.text.split())}".rstrip() + "\n")
    return "".join(lines)


@pytest.fixture
def decode(tiny_model, examples, tmp_path):
    """Return a function that calls ``decode_examples`` with one output folder."""

    def run(generation=OPTIONS, model=tiny_model, output=tmp_path / "out", **options):
        return decode_examples(model, examples, output, generation, **options)

    return run


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_text_equals_decoding_one_by_one(decode, expected, tmp_path, batch_size):
    assert decode(batch_size=batch_size) == COUNT
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected
    head, *lines = read_lines(tmp_path / "out" / "hypotheses.1.jsonl")
    assert set(head) == {"settings"}
    assert len(lines) == COUNT
    for line in lines:
        names = {"id", "text", "score", "tokens", "ctc_text", "nbest"}
        names |= {"audio_seconds", "decoding_seconds", "device"}
        assert set(line) - {"flags"} == names
        truncated = len(line["tokens"]) == 6
        assert line.get("flags", []) == ["truncated"] * truncated
        ((best, score),) = line["nbest"]
        assert " ".join(best.split()) == line["text"]
        assert score == pytest.approx(line["score"], abs=1e-3)
    assert not (tmp_path / "out" / "failed.1.tsv").exists()


def test_rerun_decodes_nothing(decode, monkeypatch, tmp_path):
    decode()
    before = (tmp_path / "out" / "hypotheses.1.jsonl").read_bytes()
    monkeypatch.setattr(SpeechToText, "from_pretrained", None)
    (tmp_path / "out" / "text").unlink()
    assert decode(batch_size=2) == 0
    assert (tmp_path / "out" / "hypotheses.1.jsonl").read_bytes() == before
    assert (tmp_path / "out" / "text").exists()


def test_resume_after_a_kill_between_batches(decode, expected, monkeypatch, tmp_path):
    decode_batch, calls = SpeechToText.decode, []

    def killed(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return decode_batch(*arguments)

    monkeypatch.setattr(SpeechToText, "decode", killed)
    monkeypatch.setattr("speechllm.inference.encoding.QUEUE", 1)  # one batch per call
    with pytest.raises(KeyboardInterrupt):
        decode(batch_size=2)
    assert not (tmp_path / "out" / "text").exists()
    monkeypatch.undo()
    assert decode(batch_size=3) == COUNT - 4
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_resume_after_a_truncated_last_line(decode, expected, tmp_path, cut):
    """The last line is cut after 1 or 30 bytes, or lacks only the line break."""
    decode()
    path = tmp_path / "out" / "hypotheses.1.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[:cut])
    assert decode() == 1
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected
    assert len(read_lines(path)) == COUNT + 1


def test_resume_after_a_truncated_first_line(decode, expected, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hypotheses.1.jsonl").write_text('{"sett')
    assert decode() == COUNT
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected


def test_other_settings_restart_decoding(decode, expected, monkeypatch, tmp_path):
    decode({**OPTIONS, "extra_tokens": 2.0})
    out = tmp_path / "out"
    assert (out / "text").read_text("utf-8") != expected
    old = (out / "hypotheses.1.jsonl").read_bytes()

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeechToText, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        decode()
    assert not (out / "text").exists()  # the old text must not be scored as the new one
    assert (out / "hypotheses.1.jsonl.previous").read_bytes() == old
    monkeypatch.undo()
    assert decode() == COUNT
    assert (out / "text").read_text("utf-8") == expected


def test_another_model_or_precision_restarts_decoding(decode, tiny_model, tmp_path):
    decode()
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    prompts = (other / "prompts.yaml").read_text().replace(" in {source}", " {source}")
    (other / "prompts.yaml").write_text(prompts)
    assert decode(model=other) == COUNT
    assert decode(model=other) == 0
    assert decode(model=other, dtype="bfloat16") == COUNT


def test_unreadable_audio_is_listed(decode, examples, expected, tmp_path, capsys):
    wavs = read_table(examples / "wav.scp")
    readable = dict(wavs)
    wavs["en-1"] = str(tmp_path / "gone.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    wavs["en-4"] = str(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 16000), 16000)
    wavs["en-5"] = str(tmp_path / "long.wav")
    write_table(examples / "wav.scp", wavs)
    decode(batch_size=2)
    text = (tmp_path / "out" / "text").read_text("utf-8").splitlines()
    for index, (found, line) in enumerate(zip(text, expected.splitlines())):
        assert found == (f"en-{index}" if index in (1, 4, 5) else line)
    failed = tmp_path / "out" / "failed.1.tsv"
    reasons = dict(line.split("\t") for line in failed.read_text().splitlines())
    assert set(reasons) == {"en-1", "en-4", "en-5"}
    assert "gone.wav" in reasons["en-1"]
    assert "31.0 s, the model takes 30 s" in reasons["en-5"]
    assert "3 of 7 utterances failed" in capsys.readouterr().out

    # a re-run decodes only what was unreadable
    for name in ("en-1", "en-4", "en-5"):
        shutil.copy(readable[name], wavs[name])
    assert decode() == 3
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected
    assert not failed.exists()


def test_unreadable_shard_is_not_an_error(decode, examples, tmp_path):
    """Other shards may be readable; an error only if no audio file is."""
    wavs = read_table(examples / "wav.scp")
    readable = sorted(wavs)[:-1]
    wavs["en-6"] = str(tmp_path / "gone.wav")
    write_table(examples / "wav.scp", wavs)
    for shard in range(1, COUNT + 1):
        decode(num_shards=COUNT, shard=shard)
    text = (tmp_path / "out" / "text").read_text("utf-8").splitlines()
    assert text[-1] == "en-6"
    assert [line.split()[0] for line in text[:-1]] == readable
    write_table(examples / "wav.scp", dict.fromkeys(wavs, wavs["en-6"]))
    with pytest.raises(UserError, match=f"none of {COUNT} utterances can be decoded"):
        decode()


def test_the_real_time_factor_counts_every_utterance_once(decode, original, tmp_path):
    samples = read_table(original / "utt2num_samples").values()
    begin = time.perf_counter()
    for shard in (1, 2):
        decode(num_shards=2, shard=shard, batch_size=2)
    elapsed = time.perf_counter() - begin
    timing = json.loads((tmp_path / "out" / "rtf.json").read_text())
    assert timing["examples"] == COUNT
    assert timing["audio_seconds"] == pytest.approx(sum(map(int, samples)) / 16000)
    assert 0 < timing["seconds"] < elapsed
    (device,) = timing["devices"]
    assert re.search(r"\b\d+ threads?, float32, batch size 2$", device)


def test_shards_are_joined(decode, expected, tmp_path):
    for shard in (3, 1, 2):
        assert not (tmp_path / "out" / "text").exists()
        decode(num_shards=3, shard=shard)
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected
    sizes = [
        len(read_lines(tmp_path / "out" / f"hypotheses.{k}.jsonl")) - 1
        for k in (1, 2, 3)
    ]
    assert sizes == [3, 2, 2]


@pytest.mark.parametrize("shards", [2, 1])
def test_a_rerun_decodes_only_what_a_failed_shard_left(
    decode, expected, tmp_path, shards
):
    """Shard 2 of 3 failed; the re-run may have another number of shards."""
    done = [decode(num_shards=3, shard=shard) for shard in (1, 3)]
    counts = [decode(num_shards=3, shard=shard) for shard in (1, 3)]
    assert counts == [0, 0] and not (tmp_path / "out" / "text").exists()
    counts = [decode(num_shards=shards, shard=shard + 1) for shard in range(shards)]
    assert sum(counts) == COUNT - sum(done) > 0
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected


def test_more_shards_than_utterances(decode, expected, tmp_path):
    for shard in range(1, COUNT + 4):
        assert decode(num_shards=COUNT + 3, shard=shard) == (shard <= COUNT)
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected


def test_shard_with_other_settings_is_not_joined(decode, tmp_path):
    decode({**OPTIONS, "extra_tokens": 2.0}, num_shards=2, shard=1)
    decode(num_shards=2, shard=2)
    assert not (tmp_path / "out" / "text").exists()


def test_joint_beam_search_writes_nbest_lists(decode, tmp_path):
    decode({**OPTIONS, "beam_size": 3, "nbest": 2, "ctc_weight": 0.4})
    for line in read_lines(tmp_path / "out" / "hypotheses.1.jsonl")[1:]:
        assert len(line["nbest"]) == 2
        assert line["nbest"][0][1] >= line["nbest"][1][1]
        assert isinstance(line["ctc_text"], str)


def test_wrong_arguments_are_errors(decode, examples, tmp_path):
    for options, message in (
        ({"shard": 3, "num_shards": 2}, "shard 3: from 1 to 2"),
        ({"shard": 0}, "shard 0: from 1 to 1"),
        ({"generation": {"beams": 2}}, "unknown option 'beams'"),
        ({"generation": {"beam_size": 0}}, "at least 1"),
        ({"generation": {"ctc_weight": 2}}, "ctc_weight 2: from 0 to 1"),
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"model": tmp_path}, "no model"),
        ({"dtype": "int4"}, "int4"),
    ):
        with pytest.raises(UserError, match=message):
            decode(**options)


def test_inconsistent_tables_are_errors(decode, examples):
    tasks = read_table(examples / "utt2task")
    write_table(examples / "utt2task", {k: v for k, v in tasks.items() if k != "en-3"})
    with pytest.raises(UserError, match="en-3 is not in both wav.scp and utt2task"):
        decode()
    write_table(examples / "utt2task", {**tasks, "en-3": "asr en"})
    with pytest.raises(
        UserError, match="en-3.*<task> <source language> <target language>"
    ):
        decode()
    write_table(examples / "utt2task", {**tasks, "en-3": "asr de de"})
    with pytest.raises(UserError, match="'de' has no name"):
        decode()


def test_decode_command(tiny_model, examples, expected, tmp_path, capsys):
    config = tmp_path / "decode.yaml"
    config.write_text("batch_size: 2\nextra_tokens: 6\ntokens_per_second: 0\n")
    arguments = ["--model", str(tiny_model), "--examples", str(examples)]
    arguments += ["--output_dir", str(tmp_path / "out"), "--config", str(config)]
    main([*arguments, "--num_shards", "2", "--shard", "1"])
    main([*arguments, "--num_shards", "2", "--shard", "2", "--batch_size", "5"])
    assert (tmp_path / "out" / "text").read_text("utf-8") == expected
    out = capsys.readouterr().out
    assert "4 utterances decoded now (shard 2)" in out
    assert "progress: 4/4 utterances" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beam: 3", "unknown option 'beam'"),
        ("[1, 2]", "expected options"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_invalid_config_is_an_error(tiny_model, examples, tmp_path, text, message):
    (tmp_path / "decode.yaml").write_text(text)
    arguments = ["--model", str(tiny_model), "--examples", str(examples)]
    arguments += ["--output_dir", str(tmp_path), "--config"]
    with pytest.raises(UserError, match=message):
        main([*arguments, str(tmp_path / "decode.yaml")])
    with pytest.raises(UserError, match="none.yaml: no such file"):
        main([*arguments, str(tmp_path / "none.yaml")])


def test_hypotheses_depend_on_the_first_pass(tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    keys, states = [settings_key(model, {}, "float32", {}, {})], [file_states(model)]
    (model / "first_pass").mkdir()
    for content in ("one", "two"):
        (model / "first_pass" / "model.safetensors").write_text(content)
        keys.append(settings_key(model, {}, "float32", {}, {}))
        states.append(file_states(model))
    (model / "first_pass" / "README.md").write_text("notes")
    assert settings_key(model, {}, "float32", {}, {}) == keys[-1]
    assert len(set(keys)) == 3
    assert states[0] != states[1] != states[2]
