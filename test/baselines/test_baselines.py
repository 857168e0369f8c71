"""Test the baselines against plain calls of transformers, and their decode dirs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_baselines
import torch
from safetensors.torch import load_file, save

from speechllm.audio.io import load_audio
from speechllm.baselines import llm_translator, nllb, seamless
from speechllm.baselines.base import gib
from speechllm.baselines.language_codes import FLORES_200, flores_code, seamless_code
from speechllm.baselines.llm_translator import LLMTranslator, text_pairs
from speechllm.baselines.nllb import Nllb
from speechllm.baselines.runner import decode_batch, read_transcripts, run_baseline
from speechllm.baselines.seamless import Seamless
from speechllm.baselines.whisper import Whisper
from speechllm.bin.baseline import main
from speechllm.data.kaldi_table import read_table, write_table
from speechllm.evaluation.score import score_decode_dir
from speechllm.text.prompts import read_prompts
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

SENTENCES = ["a bad cab", "hello", "abc def gab bead feed", "", "z"]
SHORT = 12  # maximum number of tokens of a tiny model


@pytest.fixture(autouse=True)
def short_outputs(monkeypatch):
    for module in (nllb, seamless):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", SHORT)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    """Return pieces of real speech of different lengths."""
    speech = load_audio(speech_file)
    return [speech[:9000], speech[5000:30000], speech[2000:18000], speech]


@pytest.fixture(scope="module")
def tiny_nllb(tmp_path_factory) -> Path:
    return tiny_baselines.write_tiny_nllb(tmp_path_factory.mktemp("nllb"))


@pytest.fixture(scope="module")
def tiny_seamless(tmp_path_factory) -> Path:
    return tiny_baselines.write_tiny_seamless(tmp_path_factory.mktemp("seamless"))


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory, whisper_base) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    return tiny_baselines.write_tiny_whisper_decoder(folder, whisper_base)


def texts(outputs: list[dict]) -> list[str]:
    return [output["text"] for output in outputs]


def write_examples(folder: Path, waves, requests: dict[str, str], references) -> Path:
    """Write an example dir with the task and reference of each id ``u<index>-…``."""
    folder.mkdir(parents=True)
    wavs, samples = {}, {}
    for name in requests:
        wave = waves[int(name[1])]
        path = folder / f"{name}.wav"
        soundfile.write(path, wave, 16000)
        wavs[name], samples[name] = str(path), str(len(wave))
    write_table(folder / "wav.scp", wavs)
    write_table(folder / "utt2num_samples", samples)
    write_table(folder / "utt2task", requests)
    write_table(folder / "text", {name: references[name] for name in requests})
    return folder


REQUESTS = {
    "u0-asr-en": "asr en en",
    "u0-st-de": "st en de",
    "u0-asr_st-de": "asr_st en de",
    "u1-asr-en": "asr en en",
    "u1-st-de": "st en de",
    "u2-asr-en": "asr en en",
    "u3-asr-en": "asr en en",
    "u3-asr_st-de": "asr_st en de",
}
REFERENCES = {
    name: {"asr": "abc", "st": "def", "asr_st": "abc\tdef"}[request.split()[0]]
    for name, request in REQUESTS.items()
}


@pytest.fixture
def examples(tmp_path, waves) -> Path:
    return write_examples(tmp_path / "examples", waves, REQUESTS, REFERENCES)


# Texts compared with transformers


@pytest.mark.parametrize("beam_size", [1, 3])
def test_whisper_matches_transformers(tiny_decoder, waves, beam_size):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    whisper = Whisper(tiny_decoder, beam_size=beam_size)
    whisper.load()
    outputs = whisper.decode(waves, "asr_st", "fr", "en")
    plain = WhisperForConditionalGeneration.from_pretrained(tiny_decoder)
    processor = WhisperProcessor.from_pretrained(tiny_decoder)
    for wave, output in zip(waves, outputs):
        features = processor(wave, sampling_rate=16000, return_tensors="pt")
        for task, key in (("transcribe", "transcript"), ("translate", "text")):
            tokens = plain.generate(
                features.input_features,
                language="fr",
                task=task,
                num_beams=beam_size,
            )
            (text,) = processor.batch_decode(tokens, skip_special_tokens=True)
            assert output[key] == " ".join(text.split())
    assert len(set(texts(outputs))) > 1


@pytest.mark.parametrize("beam_size", [1, 3])
def test_nllb_matches_transformers(tiny_nllb, beam_size):
    from transformers import AutoTokenizer, M2M100ForConditionalGeneration

    translator = Nllb(tiny_nllb, beam_size=beam_size)
    translator.load()
    outputs = translator.decode(SENTENCES, "asr_st", "en", "de")
    plain = M2M100ForConditionalGeneration.from_pretrained(tiny_nllb)
    tokenizer = AutoTokenizer.from_pretrained(tiny_nllb, src_lang="eng_Latn")
    for sentence, output in zip(SENTENCES, outputs):
        assert output["transcript"] == sentence
        if not sentence:
            assert output["text"] == ""
            continue
        tokens = plain.generate(
            **tokenizer(sentence, return_tensors="pt"),
            forced_bos_token_id=tokenizer.convert_tokens_to_ids("deu_Latn"),
            num_beams=beam_size,
            max_new_tokens=SHORT,
        )
        (text,) = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert output["text"] == " ".join(text.split())
    assert len(set(texts(outputs))) > 2


@pytest.mark.parametrize("beam_size", [1, 3])
def test_seamless_matches_transformers(tiny_seamless, waves, beam_size):
    from transformers import (
        AutoFeatureExtractor,
        AutoTokenizer,
        SeamlessM4Tv2ForSpeechToText,
    )

    model = Seamless(tiny_seamless, beam_size=beam_size)
    model.load()
    outputs = model.decode(waves, "asr_st", "en", "zh")
    plain = SeamlessM4Tv2ForSpeechToText.from_pretrained(tiny_seamless)
    extractor = AutoFeatureExtractor.from_pretrained(tiny_seamless)
    tokenizer = AutoTokenizer.from_pretrained(tiny_seamless)
    for wave, output in zip(waves, outputs):
        features = extractor(wave, sampling_rate=16000, return_tensors="pt")
        for code, key in (("__eng__", "transcript"), ("__cmn__", "text")):
            tokens = plain.generate(
                **features,
                decoder_input_ids=torch.tensor(
                    [[tokenizer.convert_tokens_to_ids(code)]]
                ),
                num_beams=beam_size,
                max_new_tokens=SHORT,
            )
            (text,) = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            assert output[key] == " ".join(text.split())
    assert len(set(texts(outputs))) > 1


@pytest.mark.slow
def test_whisper_decodes_more_than_30_seconds(whisper_base, waves):
    """Repeat three seconds of speech beyond one window of 30 s."""
    whisper = Whisper(whisper_base)
    whisper.load()
    once = waves[3]
    long = np.concatenate([once] * 12)
    short, whole = texts(whisper.decode([once, long], "asr", "en", "en"))
    assert "password" in short.lower()
    assert whole.lower().count("password") > 30 * 16000 / len(once)


# Decode dirs


def test_seamless_decode_dir_is_scored(tiny_seamless, examples, tmp_path):
    output = tmp_path / "exp" / "seamless" / "decode_greedy" / "test"
    model = ["--model", str(tiny_seamless), "--examples", str(examples)]
    main(["seamless", *model, "--output", str(output), "--batch_size", "3"])
    written = read_table(output / "text")
    assert written.keys() == REQUESTS.keys()
    transcripts = read_table(output / "text.transcript")
    assert transcripts == {
        name: written[name.replace("asr_st-de", "asr-en")]
        for name in ("u0-asr_st-de", "u3-asr_st-de")
    }
    assert written["u0-st-de"] == written["u0-asr_st-de"]
    rows, left_out = score_decode_dir(examples, output)
    assert not [line for line in left_out if "COMET" not in line]
    assert {row["task"] for row in rows} == {"asr", "st", "asr_st"}


def test_rerun_resumes_and_batch_size_does_not_affect_texts(
    tiny_seamless, examples, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_baseline(Seamless(tiny_seamless), examples, whole, batch_size=4) == 8
    assert run_baseline(Seamless(tiny_seamless), examples, whole) == 0
    lines = (whole / "hypotheses.1.jsonl").read_text().splitlines(keepends=True)
    killed.mkdir()
    (killed / "hypotheses.1.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    assert run_baseline(Seamless(tiny_seamless), examples, killed, batch_size=1) == 5
    for name in ("text", "text.transcript"):
        assert (killed / name).read_text() == (whole / name).read_text()
    beam = Seamless(tiny_seamless, beam_size=2)
    assert run_baseline(beam, examples, killed) == 8  # other settings start again


def test_unreadable_file_is_reported_and_retried(tiny_seamless, examples, tmp_path):
    damaged = Path(read_table(examples / "wav.scp")["u1-st-de"])
    damaged.write_bytes(b"no audio")
    output = tmp_path / "out"
    run_baseline(Seamless(tiny_seamless), examples, output)
    assert read_table(output / "text")["u1-st-de"] == ""
    assert (output / "failed.1.tsv").read_text().startswith("u1-st-de\t")
    assert run_baseline(Seamless(tiny_seamless), examples, output) == 1
    soundfile.write(damaged, np.zeros(8000, dtype=np.float32), 16000)
    assert run_baseline(Seamless(tiny_seamless), examples, output) == 1
    assert not (output / "failed.1.tsv").exists()
    write_table(examples / "wav.scp", dict.fromkeys(REQUESTS, "/nowhere.wav"))
    with pytest.raises(
        UserError, match="none of 8 utterances can be decoded: /nowhere"
    ):
        run_baseline(Seamless(tiny_seamless), examples, output)


def test_cascade_of_seamless_and_nllb(
    tiny_seamless, tiny_nllb, examples, waves, tmp_path
):
    asr_requests = {name: task for name, task in REQUESTS.items() if "-asr-" in name}
    asr = write_examples(tmp_path / "asr", waves, asr_requests, REFERENCES)
    run_baseline(Seamless(tiny_seamless), asr, tmp_path / "recognition")
    transcripts = read_table(tmp_path / "recognition" / "text")
    transcripts["u1-asr-en"] = "a bad cab"
    write_table(tmp_path / "recognition" / "text", transcripts)
    output = tmp_path / "cascade"
    arguments = ["nllb", "--model", str(tiny_nllb), "--examples", str(examples)]
    arguments += ["--transcripts", str(tmp_path / "recognition")]
    main([*arguments, "--output", str(output)])
    written = read_table(output / "text")
    translator = Nllb(tiny_nllb)
    translator.load()
    for name, request in REQUESTS.items():
        transcript = transcripts[f"{name[:2]}-asr-en"]
        expected = transcript
        if not request.startswith("asr "):
            (expected,) = texts(translator.translate([transcript], "en", "de"))
        assert written[name] == expected
    assert read_table(output / "text.transcript") == {
        name: transcripts[f"{name[:2]}-asr-en"] for name in REQUESTS if "asr_st" in name
    }


def test_transcripts_of_joint_model_are_read(tiny_nllb, tmp_path):
    """Without asr examples, ``text.transcript`` of the decode dir is used."""
    write_table(tmp_path / "text", {"u0-asr_st-de": "x"})
    write_table(tmp_path / "text.transcript", {"u0-asr_st-de": "a bad cab"})
    tasks = {"u0-asr_st-de": Task("asr_st", "en", "de")}
    assert read_transcripts(tmp_path, tasks) == {"u0-asr_st-de": "a bad cab"}


# The LLM as a translator


def write_pairs(folder: Path) -> Path:
    folder.mkdir()
    tasks, references = {}, {}
    for number, (source, target) in enumerate(
        [("press one", "tapez un"), ("goodbye", "au revoir"), ("goodbye", "au revoir")]
    ):
        tasks[f"p{number}-asr-en"] = "asr en en"
        tasks[f"p{number}-st-fr"] = "st en fr"
        references[f"p{number}-asr-en"] = source
        references[f"p{number}-st-fr"] = target
    tasks["q-asr_st-fr"] = "asr_st en fr"
    references["q-asr_st-fr"] = "please hold\tpatientez"
    tasks["r-st-fr"] = "st en fr"  # its asr example is missing
    references["r-st-fr"] = "merci"
    write_table(folder / "utt2task", dict(sorted(tasks.items())))
    write_table(folder / "text", dict(sorted(references.items())))
    return folder


def test_sentence_pairs_are_deduplicated(tmp_path):
    assert sorted(text_pairs(write_pairs(tmp_path / "train"))) == [
        ("goodbye", "au revoir", "en fr"),
        ("please hold", "patientez", "en fr"),
        ("press one", "tapez un", "en fr"),
    ]


def test_llm_is_trained_once_and_lowers_its_loss(
    tiny_model, tmp_path, monkeypatch, waves
):
    """Training lowers the loss on the pairs; a re-run loads the trained weights."""
    train = write_pairs(tmp_path / "train")
    tasks = {"u0-asr-en": "asr en en", "u0-st-fr": "st en fr"}
    references = {"u0-asr-en": "goodbye", "u0-st-fr": "au revoir"}
    examples = write_examples(tmp_path / "examples", waves, tasks, references)
    output = tmp_path / "cascade"

    def translator(**options):
        return LLMTranslator(
            tiny_model, train, output, epochs=2, learning_rate=1e-2, **options
        )

    assert run_baseline(translator(), examples, output, examples) == 2
    written = read_table(output / "text")
    assert written["u0-asr-en"] == "goodbye"
    first = translator()
    first.load()
    before = LLMTranslator(tiny_model, train, tmp_path / "other", epochs=0)
    before.load()

    def loss(system: LLMTranslator) -> float:
        with torch.no_grad():
            return system.loss(system.pairs).item()

    assert loss(first) < loss(before) - 0.05

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(LLMTranslator, "train", no_training)
    (output / "hypotheses.1.jsonl").unlink()
    assert run_baseline(translator(), examples, output, examples) == 2
    assert read_table(output / "text") == written
    again = translator()
    again.load()
    assert loss(again) == pytest.approx(loss(first), abs=1e-5)
    with pytest.raises(UserError, match="from fr into en: no training pair"):
        again.check("st", "fr", "en")


@pytest.mark.parametrize("save_seconds", [1800, 0])
def test_stopped_training_of_the_llm_resumes_with_the_same_weights(
    tiny_model, tmp_path, monkeypatch, capsys, save_seconds
):
    """Stop after the fourth of six steps; also with a save after each step."""
    train = write_pairs(tmp_path / "train")
    monkeypatch.setattr(llm_translator, "SAVE_SECONDS", save_seconds)

    def translator(name: str, epochs: int = 3) -> LLMTranslator:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return LLMTranslator(tiny_model, train, folder, epochs, learning_rate=1e-2)

    translator("whole").train(batch_size=2)
    count = llm_translator.Course.count

    def stop(course, loss):
        count(course, loss)
        if course.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(llm_translator.Course, "count", stop)
    with pytest.raises(UserError, match="by SIGTERM; saved after step 4, where the"):
        translator("stopped").train(batch_size=2)
    files = [path.name for path in (tmp_path / "stopped").iterdir()]
    assert files == ["translator.training.pt"]
    monkeypatch.setattr(llm_translator.Course, "count", count)
    translator("stopped").train(batch_size=2)
    assert "resumed after step 4\n" in capsys.readouterr().err
    whole, stopped = (
        load_file(tmp_path / name / "translator.safetensors")
        for name in ("whole", "stopped")
    )
    assert whole and all(torch.equal(stopped[name], whole[name]) for name in whole)
    assert len(list((tmp_path / "stopped").iterdir())) == 1


def test_saved_training_of_the_llm_with_other_options_is_not_used(
    tiny_model, tmp_path, capsys
):
    train = write_pairs(tmp_path / "train")
    torch.save({"training": "another"}, tmp_path / "translator.training.pt")
    LLMTranslator(tiny_model, train, tmp_path, epochs=1).train()
    assert "resumed" not in capsys.readouterr().err
    kept = torch.load(tmp_path / "translator.training.pt.previous", weights_only=True)
    assert kept == {"training": "another"}


def test_other_weights_of_a_translator_are_not_replaced(tiny_model, tmp_path):
    train, file = write_pairs(tmp_path / "train"), tmp_path / "translator.safetensors"
    for content in (b"years of work", b"", save({"a": torch.zeros(2)})):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file}: not the weights of this"):
            LLMTranslator(tiny_model, train, tmp_path, epochs=0).load()
        assert file.read_bytes() == content


def test_batch_does_not_affect_llm_translations(tiny_model, tmp_path):
    train = write_pairs(tmp_path / "train")
    translator = LLMTranslator(tiny_model, train, tmp_path, epochs=0)
    translator.load()
    sentences = ["press one now please", "goodbye", "hold"]
    together = translator.decode(sentences, "asr_st", "en", "fr")
    alone = [translator.decode([s], "asr_st", "en", "fr")[0] for s in sentences]
    assert together == alone
    assert [output["transcript"] for output in together] == sentences


# Languages


def test_language_codes_match_transformers():
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    assert set(FLORES_200.values()) <= set(FAIRSEQ_LANGUAGE_CODES)
    assert flores_code("de") == "deu_Latn"
    assert seamless_code("de") == "deu"
    assert seamless_code("zh") == "cmn"
    assert seamless_code("yue") == "yue"


@pytest.mark.parametrize("recipe", ["must_c", "covost2", "fleurs", "mini_asterisk"])
def test_every_recipe_language_has_a_code(recipe):
    conf = Path(__file__).parents[2] / "egs2" / recipe / "speechllm1" / "conf"
    for language in read_prompts(conf / "prompts.yaml").languages:
        assert flores_code(language)


def test_unsupported_language_is_an_error_before_loading(
    tiny_nllb, tiny_seamless, tiny_decoder, examples
):
    for system_class, folder in ((Nllb, tiny_nllb), (Seamless, tiny_seamless)):
        with pytest.raises(UserError, match="'xx' has no code"):
            system_class(folder).check("st", "en", "xx")
        with pytest.raises(UserError, match=r"'fi' \(fin"):
            system_class(folder).check("st", "en", "fi")
    with pytest.raises(UserError, match="asr from xx: .* supports af, am, ar"):
        Whisper(tiny_decoder).check("asr", "xx", "xx")
    with pytest.raises(UserError, match="utt2task, u0-asr_st-de: .*into English only"):
        run_baseline(Whisper(tiny_decoder), examples, examples / "out")
    assert not (examples / "out").exists()


# Errors


def test_missing_transcript_is_an_error(tiny_nllb, examples, tmp_path):
    (tmp_path / "recognition").mkdir()
    write_table(tmp_path / "recognition" / "text", {"u0-asr-en": "a"})
    with pytest.raises(UserError, match=r"no transcript of u1-.*u1-asr-en is missing"):
        run_baseline(
            Nllb(tiny_nllb), examples, tmp_path / "out", tmp_path / "recognition"
        )


def test_model_of_another_type_is_an_error(tiny_nllb):
    with pytest.raises(
        UserError, match="type is 'm2m_100', but whisper requires whisper"
    ):
        Whisper(tiny_nllb)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("generation_config.json", "{"),
        ("generation_config.json", "null"),
        ("generation_config.json", "{}"),
        ("generation_config.json", '{"lang_to_id": 5}'),
    ],
)
def test_damaged_settings_of_whisper_are_one_error(
    tiny_decoder, tmp_path, name, content
):
    shutil.copytree(tiny_decoder, tmp_path / "whisper")
    (tmp_path / "whisper" / name).write_text(content)
    with pytest.raises(UserError, match=name):
        Whisper(str(tmp_path / "whisper")).check("asr", "en", "en")


def test_malformed_task_is_an_error(tiny_seamless, examples):
    write_table(examples / "utt2task", {"u0-asr-en": "asr en"})
    with pytest.raises(UserError, match="utt2task, u0-asr-en: expected"):
        run_baseline(Seamless(tiny_seamless), examples, examples / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", "0"), ("beam_size", "-1"), ("epochs", "0"),
        ("learning_rate", "nan"), ("learning_rate", "inf"), ("learning_rate", "-1"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_an_error_before_loading(tmp_path, option, value):
    arguments = [
        "llm",
        "--model",
        "none",
        "--examples",
        "none",
        "--transcripts",
        "none",
    ]
    arguments += ["--train_examples", "none", "--output", str(tmp_path / "decode")]
    with pytest.raises(UserError, match=f"--{option} {value}"):
        main([*arguments, f"--{option}", value])
    assert not (tmp_path / "decode").exists()


def test_length_that_is_not_a_number_is_an_error(tiny_seamless, tmp_path):
    write_table(tmp_path / "utt2task", {"u1": "asr en en"})
    write_table(tmp_path / "wav.scp", {"u1": "u1.wav"})
    write_table(tmp_path / "utt2num_samples", {"u1": "nan"})
    with pytest.raises(UserError, match="utt2num_samples: 'nan' of u1"):
        run_baseline(Seamless(tiny_seamless), tmp_path, tmp_path / "decode")


def test_weights_exceeding_gpu_memory_are_an_error(tiny_nllb, monkeypatch):
    """Simulate a GPU whose free memory is near the size of the weights."""
    from transformers import M2M100ForConditionalGeneration

    translator = Nllb(tiny_nllb)
    whole = M2M100ForConditionalGeneration.from_pretrained(tiny_nllb)
    count = sum(p.numel() for p in whole.parameters())
    translator.device = "cuda"
    for free, remedy in ((3 * count, "--dtype bfloat16 needs"), (count, "smaller")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, f=free: (f, 1 << 30))
        with pytest.raises(UserError, match=f"in float32, but cuda has .*{remedy}"):
            translator.load()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * count, 1 << 30))
    translator.check_memory(M2M100ForConditionalGeneration)


def test_batch_exceeding_gpu_memory_is_an_error(tiny_nllb, monkeypatch):
    translator = Nllb(tiny_nllb, beam_size=4)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(translator, "decode", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 28, 16 << 30))
    with pytest.raises(UserError, match=r"16.0 GiB, 0.2 GiB free.*--batch_size 4"):
        decode_batch(translator, ["a"] * 8, Task("st", "en", "de"))
    with pytest.raises(UserError, match="--beam_size 1, another GPU"):
        decode_batch(translator, ["a"], Task("st", "en", "de"))
    assert gib(3 << 29) == "1.5 GiB"


# The real Whisper


@pytest.mark.slow
def test_whisper_base_on_asterisk_prompts(asterisk_dir, tmp_path):
    """Whisper-base transcribes and translates with low error rates."""
    from speechllm.corpora.asterisk import read_language

    keys = ["agent-user", "vm-forward", "vm-mailboxfull"]
    entries = {
        language: {e.key: e for e in read_language(asterisk_dir, language)[0]}
        for language in ("en", "fr")
    }
    requests, references, waves = {}, {}, []
    for number, key in enumerate(keys):
        english, french = entries["en"][key], entries["fr"][key]
        requests |= {
            f"u{2 * number}-asr-en": "asr en en",
            f"u{2 * number + 1}-st-en": "st fr en",
        }
        references[f"u{2 * number}-asr-en"] = english.text
        references[f"u{2 * number + 1}-st-en"] = english.text
        waves += [load_audio(english.path), load_audio(french.path)]
    examples = write_examples(
        tmp_path / "examples", waves, dict(sorted(requests.items())), references
    )
    output = tmp_path / "out"
    main(["whisper", "--examples", str(examples), "--output", str(output)])
    together = read_table(output / "text")
    rows, _ = score_decode_dir(examples, output)
    values = {(row["task"], row["metric"]): row["value"] for row in rows}
    assert values["asr", "wer"] < 15
    assert values["st", "chrf"] > 25
    assert all(together[name] for name in requests)
    alone = tmp_path / "alone"
    run_baseline(Whisper("openai/whisper-base"), examples, alone, batch_size=1)
    assert read_table(alone / "text") == together
    line = json.loads((output / "hypotheses.1.jsonl").read_text().splitlines()[1])
    times = {"audio_seconds", "decoding_seconds", "device"}
    assert {"id", "text", "tokens"} | times == line.keys()
    timing = json.loads((output / "rtf.json").read_text())
    assert timing["examples"] == len(together)
    assert timing["audio_seconds"] == pytest.approx(sum(map(len, waves)) / 16000)
