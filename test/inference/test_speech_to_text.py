"""SpeechToText: results, wrong requests, loading, export and batches by length."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import LABELS, write_tiny_whisper

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.decoding import nbest_search
from speechllm.export.exported_model import (
    export_model,
    is_ctc_trained,
    output_limits,
)
from speechllm.inference.loading import merge_adapters
from speechllm.models.speech_llm import build_speech_llm
from speechllm.utils.batching import batches_by_length
from speechllm.utils.errors import UserError

SHORT = {"tokens_per_second": 0.0, "extra_tokens": 6.0}  # six tokens at most


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    speech = load_audio(speech_file)
    sizes = (8000, 20000, 3000, 30000, 8000)
    return [speech[500 * i : 500 * i + n] for i, n in enumerate(sizes)]


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    """Return a copy of the model that a test may change."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("options", [{}, {"beam_size": 3, "ctc_weight": 0.4}])
def test_results_are_in_order_and_do_not_depend_on_the_batch(model, waves, options):
    options = {**SHORT, **options}
    alone = [model.transcribe([wave], **options)[0] for wave in waves]
    assert len({result.text for result in alone}) > 1
    for batch_size in (1, 2, 8):
        found = model.transcribe(waves, batch_size=batch_size, **options)
        assert [r.text for r in found] == [r.text for r in alone]
        assert [r.tokens for r in found] == [r.tokens for r in alone]
        for one, other in zip(found, alone):
            assert one.score == pytest.approx(other.score, abs=1e-3)
    reverse = model.transcribe(waves[::-1], batch_size=3, **options)
    assert [r.text for r in reverse] == [r.text for r in alone[::-1]]


def test_file_and_samples_give_the_same_text(model, speech_file):
    paths = model.transcribe([speech_file, str(speech_file)], **SHORT)
    arrays = model.transcribe([load_audio(speech_file)], **SHORT)
    assert paths[0].text == paths[1].text == arrays[0].text


def test_fields_of_a_result(model, waves):
    (result,) = model.transcribe(waves[:1], beam_size=4, nbest=3, **SHORT)
    assert result.text == result.nbest[0][0]
    assert result.score == result.nbest[0][1]
    assert [s for _, s in result.nbest] == sorted((s for _, s in result.nbest))[::-1]
    assert isinstance(result.ctc_text, str)
    tokenizer = model.llm.tokenizer
    text = tokenizer.convert_tokens_to_string(result.tokens).strip()
    assert text == result.text


def test_translation_uses_another_prompt(model, waves):
    (transcript,) = model.transcribe(waves[1:2], language="en", **SHORT)
    (translation,) = model.transcribe(
        waves[1:2], task="st", language="en", target_language="fr", **SHORT
    )
    assert transcript.text != translation.text


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        ([], {}, "not empty"),
        ("a.wav", {}, "takes a list"),
        (["none.wav"], {}, "none.wav"),
        ([np.zeros((2, 800))], {}, r"shape \(2, 800\)"),
        ([np.zeros(0)], {}, r"shape \(0,\)"),
        ([np.full(800, np.nan)], {}, "finite"),
        ([np.zeros(800)], {"task": "tts"}, "no prompt for task 'tts'"),
        ([np.zeros(800)], {"language": "de"}, "'de' has no name"),
        ([np.zeros(800)], {"task": "st"}, "needs a target_language"),
        (
            [np.zeros(800)],
            {"task": "st", "target_language": "de"},
            "'de' has no name",
        ),
        ([np.zeros(800)], {"beams": 3}, "unknown option 'beams'; known are beam_size"),
        ([np.zeros(800)], {"beam_size": 0}, "at least 1"),
        ([np.zeros(800)], {"batch_size": 0}, "batch_size 0"),
        ([np.zeros(800)], {"ctc_weight": -1}, "ctc_weight -1: from 0 to 1"),
        ([np.zeros(800)], {"rescore_ctc_weight": 2}, "rescore_ctc_weight 2: from 0"),
        ([np.zeros(800)], {"no_repeat_ngram_size": -1}, "at least 0"),
        ([np.zeros(800)], {"guard": "on"}, "guard 'on': true or false"),
        ([np.zeros(800)], {"guard": True}, "has no thresholds"),
        ([np.zeros(800)], {"word_times": 3}, "word_times 3: true or false"),
        ([np.zeros(480500)], {}, "takes at most 30 s"),
    ],
)
def test_wrong_requests_are_errors(model, audio, options, message):
    with pytest.raises(UserError, match=message):
        model.transcribe(audio, **options)


# Loading


def test_training_folder_loads_its_exported_model(tiny_model, waves, model):
    found = SpeechToText.from_pretrained(tiny_model.parent)
    expected = model.transcribe(waves[:1], **SHORT)
    assert found.transcribe(waves[:1], **SHORT)[0].text == expected[0].text


@pytest.mark.parametrize("bridge", ["convolution", "ctc_compression", "transcript"])
def test_bfloat16_model_decodes(copied, waves, bridge):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["bridge"] = bridge
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    state = build_speech_llm({**config, "token_list": LABELS}).state_dict()
    save_file(state, copied / "model.safetensors")
    recognizer = SpeechToText.from_pretrained(copied, dtype="bfloat16")
    assert {p.dtype for p in recognizer.model.parameters()} == {torch.bfloat16}
    results = recognizer.transcribe(waves, ctc_weight=0.3, beam_size=2, **SHORT)
    assert len(results) == len(waves)


@torch.inference_mode()
def test_merged_adapters_give_the_same_output(tiny_model):
    config = yaml.safe_load((tiny_model / "config.yaml").read_text())
    llm = build_speech_llm({**config, "token_list": LABELS}).llm.eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 9)
    tokens = torch.tensor([[1, 5, 9, 300]])
    before = llm.head(llm.body(llm.embed(tokens), torch.ones_like(tokens)))
    merge_adapters(llm)
    assert not any("lora" in name for name, _ in llm.named_modules())
    after = llm.head(llm.body(llm.embed(tokens), torch.ones_like(tokens)))
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def change_config(**changes):
    def change(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in changes.items():
            config.pop(key) if value is None else config.update({key: value})
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    return change


def reshape_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["ctc.ctc_lo.bias"] = torch.zeros(99)
    save_file(state, folder / "model.safetensors")


def drop_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["ctc.ctc_lo.bias"]
    save_file(state, folder / "model.safetensors")


def truncate_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model"),
        (lambda f: (f / "config.yaml").write_text("a: ["), "config.yaml"),
        (lambda f: (f / "config.yaml").write_text("- a"), "config.yaml"),
        (lambda f: (f / "prompts.yaml").unlink(), "no such prompts file"),
        (lambda f: (f / "tokens.txt").unlink(), "tokens.txt: missing; export"),
        (change_config(encoder=None), "encoder"),
        (change_config(encoder_conf=None), "encoder_conf"),
        (change_config(llm_conf={}), "llm_conf"),
        (change_config(llm_conf=[1]), "config.yaml: llm_conf is not a mapping"),
        (change_config(encoder_conf={"model": 3}), "encoder_conf names no model"),
        (change_config(stands_on="x"), "stands_on is not a mapping"),
        (lambda f: (f / "tokens.txt").write_bytes(b"\xff"), "tokens.txt: cannot be"),
        (change_config(bridge="none"), "bridge 'none': one of"),
        (change_config(llm=None), "without an LLM"),
        (reshape_weights, "another shape.*ctc.ctc_lo.bias"),
        (drop_weights, "missing in the checkpoint: ctc.ctc_lo.bias"),
        (truncate_weights, "model.safetensors: .*cut off"),
    ],
)
def test_damaged_model_folder_is_an_error(copied, damage, message):
    damage(copied)
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copied)


def test_ctc_model_gives_the_greedy_transcript(copied, model, waves):
    """Compare a model without LLM and bridge with the CTC output of the whole model."""
    change_config(llm=None, bridge=None, model_conf={"ctc_weight": 1.0})(copied)
    state = load_file(copied / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if k.startswith("ctc.")},
        copied / "model.safetensors",
    )
    ctc = SpeechToText.from_pretrained(copied)
    ctc_texts = [r.ctc_text for r in model.transcribe(waves, **SHORT)]
    assert len(set(ctc_texts)) > 1
    for size in (1, 3):
        found = ctc.transcribe(waves, batch_size=size)
        assert [r.text for r in found] == ctc_texts
        for result in found:
            letters = [" " if t == "<space>" else t for t in result.tokens]
            text = "".join(t for t in letters if len(t) == 1)
            assert " ".join(text.split()) == result.text
            assert result.score < 0 and result.nbest == [(result.text, result.score)]
    for options in ({"beam_size": 2}, {"ctc_weight": 0.3}):
        with pytest.raises(UserError, match="without an LLM has greedy decoding only"):
            ctc.transcribe(waves, **options)
    with pytest.raises(UserError, match="task 'st': a CTC model only transcribes"):
        ctc.transcribe(waves, task="st", target_language="fr")
    with pytest.raises(UserError, match="takes at most 30 s"):
        ctc.transcribe([np.zeros(480500)])


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("speechllm.cli", ["transcribe", "--model", "{model}", "{wav}"]),
        ("speechllm.cli", ["to_nue_asr", "--model", "{model}"]),
        ("speechllm.bin.export_model", ["--exp_dir", "{exp}", "--checkpoint", "a.pth"]),
        ("speechllm.bin.pack", ["--model", "{model}"]),
    ],
)
def test_unwritable_output_is_one_error_line(
    capsys, tmp_path, tiny_model, speech_file, module, arguments
):
    """The error names the path; there is no traceback."""
    from importlib import import_module

    from speechllm.utils.errors import run_main

    shutil.copy(tiny_model / "config.yaml", tmp_path)
    torch.save({"ctc.ctc_lo.bias": torch.zeros(3)}, tmp_path / "a.pth")
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "below"
    names = {"model": tiny_model, "wav": speech_file, "exp": tmp_path}
    words = [a.format(**names) for a in arguments] + ["--output", str(output)]
    with pytest.raises(SystemExit) as end:
        run_main(lambda: import_module(module).main(words))
    assert end.value.code == 1
    errors = [s for s in capsys.readouterr().err.splitlines() if "error" in s.lower()]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert str(tmp_path / "file") in errors[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_model_and_wrong_loading_options_are_errors(tiny_model, tmp_path):
    with pytest.raises(UserError, match="no model"):
        SpeechToText.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="device 'abacus'"):
        SpeechToText.from_pretrained(tiny_model, device="abacus")
    with pytest.raises(UserError, match="dtype 'int4'"):
        SpeechToText.from_pretrained(tiny_model, dtype="int4")


# Export (stage 10)


@pytest.fixture
def training(tiny_model, tmp_path) -> Path:
    """Return a training folder as written by ESPnet, with the tiny model's weights."""
    folder = tmp_path / "exp"
    folder.mkdir()
    config = yaml.safe_load((tiny_model / "config.yaml").read_text())
    config.update(ctc_token_list=LABELS, prompts=str(tiny_model / "prompts.yaml"))
    config.update(optim="adamw", max_epoch=3)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(load_file(tiny_model / "model.safetensors"), folder / "best.pth")
    return folder


def test_exported_model_equals_the_trained_one(training, model, waves):
    size = export_model(training, "best.pth", training / "model")
    folder = training / "model"
    assert size == (folder / "model.safetensors").stat().st_size < 200_000
    names = {path.name for path in folder.glob("[!.]*")}
    assert json.loads((folder / "config.json").read_text()) == {
        "model_type": "speechllm"
    }
    assert names == {
        "config.json",
        "config.yaml",
        "model.safetensors",
        "peft_adapter",
        "prompts.yaml",
        "tokens.txt",
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert "optim" not in config
    assert [len(found) for found in config["stands_on"].values()] == [1, 2]
    modes = {path.stat().st_mode & 0o777 for path in folder.glob("*.*")}
    assert modes == {(folder / "config.yaml").stat().st_mode & 0o777}
    found = SpeechToText.from_pretrained(training).transcribe(waves, **SHORT)
    expected = model.transcribe(waves, **SHORT)
    assert [r.text for r in found] == [r.text for r in expected]


def test_the_model_of_the_first_pass_is_exported(training, whisper_base, tmp_path):
    finetuned = tmp_path / "first_pass"
    shutil.copytree(whisper_base, finetuned)
    (finetuned / ".speechllm_output").write_text("marker")
    folder = training / "model"
    export_model(training, "best.pth", folder, finetuned)
    names = {path.name for path in finetuned.glob("[!.]*")}
    assert {path.name for path in (folder / "first_pass").iterdir()} == names
    export_model(training, "best.pth", folder)
    assert not (folder / "first_pass").exists()
    with pytest.raises(UserError, match="no model of the first pass; run stage 8"):
        export_model(training, "best.pth", folder, tmp_path)


def test_changed_pretrained_weights_are_a_warning(training, tmp_path, caplog):
    encoder = write_tiny_whisper(tmp_path / "encoder")
    config = yaml.safe_load((training / "config.yaml").read_text())
    config["encoder_conf"]["model"] = str(encoder)
    (training / "config.yaml").write_text(yaml.safe_dump(config))
    export_model(training, "best.pth", training / "model")
    SpeechToText.from_pretrained(training)
    weights = load_file(encoder / "model.safetensors")
    first = next(iter(weights))
    weights[first] = weights[first] + 1
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    message = f"trained on {encoder} .*has other weights"
    assert not caplog.records
    SpeechToText.from_pretrained(training)
    [record] = caplog.records
    assert re.search(message, record.getMessage())
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(training, strict=True)


def test_models_travel(training, tmp_path, caplog):
    """Other files of the same model do not matter; another vocabulary does."""
    llm = tmp_path / "llm"
    config = yaml.safe_load((training / "config.yaml").read_text())
    shutil.copytree(config["llm_conf"]["model"], llm)
    config["llm_conf"]["model"] = str(llm)
    (training / "config.yaml").write_text(yaml.safe_dump(config))
    export_model(training, "best.pth", training / "model")
    (llm / "config.json").write_text((llm / "config.json").read_text() + "\n")
    tokenizer = json.loads((llm / "tokenizer.json").read_text())
    (llm / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    weights = load_file(llm / "model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: weights[n] for n in part}, llm / file, metadata={"format": "pt"})
    places = {name: file for file, part in halves.items() for name in part}
    index = {"metadata": {}, "weight_map": places}
    (llm / "model.safetensors.index.json").write_text(json.dumps(index))
    (llm / "model.safetensors").unlink()
    SpeechToText.from_pretrained(training, strict=True)
    assert not caplog.records
    first, second = list(tokenizer["model"]["vocab"])[1000:1002]
    ids = tokenizer["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    (llm / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=f"another vocabulary than that of {llm}"):
        SpeechToText.from_pretrained(training)


def test_precision_of_converted_weights_is_recorded(training, tmp_path, caplog):
    encoder = write_tiny_whisper(tmp_path / "encoder")
    source = encoder / "speechllm_source.json"
    source.write_text('{"precision": "Q4_1", "converter": 1}')
    config = yaml.safe_load((training / "config.yaml").read_text())
    config["encoder_conf"]["model"] = str(encoder)
    (training / "config.yaml").write_text(yaml.safe_dump(config))
    export_model(training, "best.pth", training / "model")
    source.unlink()  # the same name, as published
    weights = load_file(encoder / "model.safetensors")
    weights = {name: 1.01 * value for name, value in weights.items()}
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    SpeechToText.from_pretrained(training)
    [record] = caplog.records
    for part in ("(Q4_1 weights)", "(unconverted)", "texts and scores will differ"):
        assert part in record.getMessage()


def test_swapped_labels_are_an_error(training):
    """Two ids swapped would give other text without an error."""
    labels = training / "model" / "tokens.txt"
    export_model(training, "best.pth", training / "model")
    lines = labels.read_text().splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="tokens.txt: not the CTC labels"):
        SpeechToText.from_pretrained(training)


@pytest.mark.parametrize("size", ["x", 1.5, float("nan"), 0, True])
def test_batch_size_is_checked(model, waves, size):
    with pytest.raises(UserError, match="transcribe: batch_size .* at least 1"):
        model.transcribe(waves[:1], batch_size=size)


@pytest.mark.parametrize("path", [None, 5, ["a"]])
def test_a_path_of_another_type_is_an_error(path):
    with pytest.raises(UserError, match="is not a model: name a folder or a hub id"):
        SpeechToText.from_pretrained(path)


def test_export_of_a_missing_checkpoint_is_an_error(training, tmp_path):
    with pytest.raises(UserError, match="run stage 9"):
        export_model(tmp_path / "none", "best.pth", tmp_path / "model")
    with pytest.raises(UserError, match="none.pth: no such checkpoint"):
        export_model(training, "none.pth", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_batches_have_similar_lengths():
    batches = list(batches_by_length([3, 9, 3, 1, 7], 2))
    assert batches == [[1, 4], [0, 2], [3]]
    assert list(batches_by_length([], 4)) == []


# Maximum length of outputs


def test_truncated_outputs_are_flagged_and_decoded_again(copied, waves, monkeypatch):
    """Count the searches; the limits are the model's own or chosen by the caller."""
    limits = []
    search = nbest_search.beam_search

    def counted(llm, requests, *others, **options):
        limits.append([request.max_tokens for request in requests])
        return search(llm, requests, *others, **options)

    monkeypatch.setattr(nbest_search, "beam_search", counted)
    monkeypatch.setattr(nbest_search, "ends_in_loop", lambda tokens: False)
    change_config(generation=SHORT)(copied)  # limits of the exported model
    model = SpeechToText.from_pretrained(copied)
    (found,) = model.transcribe(waves[:1], min_tokens=9)
    assert (limits, len(found.tokens), found.flags) == ([[6], [12]], 12, ["truncated"])
    limits.clear()
    (found,) = model.transcribe(waves[:1], min_tokens=9, **SHORT)
    assert (limits, len(found.tokens)) == ([[6]], 6)
    assert found.entry()["flags"] == ["truncated"]
    limits.clear()
    options = {**SHORT, "extra_tokens": 4, "retry_truncated": True, "min_tokens": 7}
    (found,) = model.transcribe(waves[:1], **options)
    assert limits == [[4], [8]]
    assert len(found.tokens) >= 7


def test_loops_are_not_decoded_again():
    assert nbest_search.ends_in_loop([5, 1, 2, 1, 2, 1, 2])
    assert nbest_search.ends_in_loop([7, 3, 3, 3])
    assert not nbest_search.ends_in_loop([1, 2, 1, 2, 1, 3])
    assert not nbest_search.ends_in_loop([])


def test_limits_are_measured_on_the_validation_set(smollm2, tmp_path):
    """The densest text has 31 tokens and the end in 2 s: (32 - 20.5) / 2 · 1.5."""
    (tmp_path / "text").write_text("a x\nb " + " ".join(["a"] * 31) + "\n")
    (tmp_path / "utt2task").write_text("a asr en en\nb asr en en\n")
    (tmp_path / "utt2num_samples").write_text("a 16000\nb 32000\n")
    trained = {
        "llm": "causal_lm",
        "llm_conf": {"model": str(smollm2)},
        "valid_data_path_and_name_and_type": [[f"{tmp_path}/text", "text", "text"]],
    }
    expected = {"tokens_per_second": 9, "extra_tokens": 20.5}
    assert output_limits(trained) == expected
    assert output_limits({**trained, "llm": None}) == {}
    (tmp_path / "utt2num_samples").unlink()
    assert output_limits(trained) == {}


# CTC branches that were not trained


def test_a_training_or_its_initialisation_trains_ctc(tmp_path):
    labels = {"ctc_token_list": LABELS}
    for name, weight in (("with", 1.0), ("without", 0.0)):
        (tmp_path / name).mkdir()
        config = {**labels, "model_conf": {"ctc_weight": weight}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / name / "best.pth").touch()

    def trained(weight: float, *starts: str) -> bool:
        paths = [f"{tmp_path}/{start}" for start in starts]
        return is_ctc_trained(
            {**labels, "model_conf": {"ctc_weight": weight}, "init_param": paths}
        )

    assert trained(0.3) and not trained(0.0)
    assert is_ctc_trained(labels)  # the default weight
    assert not is_ctc_trained({"ctc_token_list": None})
    assert trained(0.0, "with/best.pth")
    assert trained(0.0, "with/best.pth:ctc")
    assert not trained(0.0, "with/best.pth:encoder")
    assert not trained(0.0, "without/best.pth")
    assert trained(0.0, "without/best.pth", "with/best.pth")


def test_an_untrained_ctc_branch_is_not_used(copied, model, waves):
    (before,) = model.transcribe(waves[:1], **SHORT)
    change_config(ctc_trained=False)(copied)
    untrained = SpeechToText.from_pretrained(copied)
    (found,) = untrained.transcribe(waves[:1], **SHORT)
    assert (found.text, found.ctc_text) == (before.text, None)
    assert before.ctc_text is not None
    options = {"ctc_weight": 0.3, "rescore_ctc_weight": 0.3}
    for name, value in {**options, "word_times": True, "guard": True}.items():
        with pytest.raises(UserError, match=f"^{name} needs a trained CTC branch"):
            untrained.transcribe(waves[:1], **{name: value})


def test_ctc_model_encodes_in_groups_and_has_word_times(copied, waves, monkeypatch):
    """Its utterances take the path of other models: no padding of the whole queue."""
    change_config(llm=None, bridge=None, model_conf={"ctc_weight": 1.0})(copied)
    state = load_file(copied / "model.safetensors")
    state = {k: v for k, v in state.items() if k.startswith("ctc.")}
    save_file(state, copied / "model.safetensors")
    ctc = SpeechToText.from_pretrained(copied)
    sizes = []
    encode = type(ctc.model).encode

    def counted(self, speech, lengths):
        sizes.append(tuple(speech.shape))
        return encode(self, speech, lengths)

    monkeypatch.setattr(type(ctc.model), "encode", counted)
    found = ctc.transcribe(waves, word_times=True)
    assert sorted(sizes) == [(1, 3000), (1, 20000), (1, 30000), (2, 8000)]
    for result in found:
        assert [word.text for word in result.words] == result.text.split()
