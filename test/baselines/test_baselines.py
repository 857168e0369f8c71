"""Baselines against plain calls of transformers, and as decode dirs that are scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_baselines
import torch

from speechllm.audio.io import load_audio
from speechllm.baselines import base as system
from speechllm.baselines import language_codes as languages
from speechllm.baselines import llm_translator as llm
from speechllm.baselines import nllb, seamless
from speechllm.baselines import runner as run
from speechllm.baselines.nllb import Nllb
from speechllm.baselines.runner import run_baseline
from speechllm.baselines.seamless import Seamless
from speechllm.baselines.whisper import Whisper
from speechllm.bin.baseline import main
from speechllm.data.kaldi_table import read_table, write_table
from speechllm.evaluation.score import score_decode_dir
from speechllm.text.prompts import read_prompts
from speechllm.utils.errors import UserError

SENTENCES = ["a bad cab", "hello", "abc def gab bead feed", "", "z"]
SHORT = 12  # most tokens of a tiny model's answer


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    for module in (nllb, seamless):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", SHORT)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    """Pieces of real speech, of three lengths."""
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


def texts(answers: list[dict]) -> list[str]:
    return [answer["text"] for answer in answers]


def write_examples(folder: Path, waves, requests: dict[str, str], references) -> Path:
    """An example dir: the utterances' audio, and a request and reference of each id."""
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


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("beam_size", [1, 3])
def test_whisper_is_transformers_whisper(tiny_decoder, waves, beam_size):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    whisper = Whisper(tiny_decoder, beam_size=beam_size)
    whisper.load()
    answers = whisper.answer(waves, "asr_st", "fr", "en")
    plain = WhisperForConditionalGeneration.from_pretrained(tiny_decoder)
    processor = WhisperProcessor.from_pretrained(tiny_decoder)
    for wave, answer in zip(waves, answers):
        features = processor(wave, sampling_rate=16000, return_tensors="pt")
        for task, key in (("transcribe", "transcript"), ("translate", "text")):
            tokens = plain.generate(
                features.input_features,
                language="fr",
                task=task,
                num_beams=beam_size,
            )
            (text,) = processor.batch_decode(tokens, skip_special_tokens=True)
            assert answer[key] == " ".join(text.split())
    assert len({answer["text"] for answer in answers}) > 1


@pytest.mark.parametrize("beam_size", [1, 3])
def test_nllb_is_transformers_nllb(tiny_nllb, beam_size):
    from transformers import AutoTokenizer, M2M100ForConditionalGeneration

    translator = Nllb(tiny_nllb, beam_size=beam_size)
    translator.load()
    answers = translator.answer(SENTENCES, "asr_st", "en", "de")
    plain = M2M100ForConditionalGeneration.from_pretrained(tiny_nllb)
    tokenizer = AutoTokenizer.from_pretrained(tiny_nllb, src_lang="eng_Latn")
    for sentence, answer in zip(SENTENCES, answers):
        assert answer["transcript"] == sentence
        if not sentence:
            assert answer["text"] == ""
            continue
        tokens = plain.generate(
            **tokenizer(sentence, return_tensors="pt"),
            forced_bos_token_id=tokenizer.convert_tokens_to_ids("deu_Latn"),
            num_beams=beam_size,
            max_new_tokens=SHORT,
        )
        (text,) = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert answer["text"] == " ".join(text.split())
    assert len(set(texts(answers))) > 2


@pytest.mark.parametrize("beam_size", [1, 3])
def test_seamless_is_transformers_seamless(tiny_seamless, waves, beam_size):
    from transformers import (
        AutoFeatureExtractor,
        AutoTokenizer,
        SeamlessM4Tv2ForSpeechToText,
    )

    model = Seamless(tiny_seamless, beam_size=beam_size)
    model.load()
    answers = model.answer(waves, "asr_st", "en", "zh")
    plain = SeamlessM4Tv2ForSpeechToText.from_pretrained(tiny_seamless)
    extractor = AutoFeatureExtractor.from_pretrained(tiny_seamless)
    tokenizer = AutoTokenizer.from_pretrained(tiny_seamless)
    for wave, answer in zip(waves, answers):
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
            assert answer[key] == " ".join(text.split())
    assert len(set(texts(answers))) > 1


@pytest.mark.slow
def test_speech_of_more_than_half_a_minute_is_decoded_to_its_end(whisper_base, waves):
    """The same three seconds a dozen times: more of them than one window holds."""
    whisper = Whisper(whisper_base)
    whisper.load()
    once = waves[3]
    long = np.concatenate([once] * 12)
    short, whole = texts(whisper.answer([once, long], "asr", "en", "en"))
    assert "password" in short.lower()
    assert whole.lower().count("password") > 30 * 16000 / len(once)


# ---------------------------------------------------------------- decode dirs


def test_a_decode_dir_of_seamless_is_scored(tiny_seamless, examples, tmp_path):
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


def test_a_killed_run_goes_on_and_batches_change_nothing(
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
    assert run_baseline(beam, examples, killed) == 8  # other settings start anew


def test_an_unreadable_file_is_reported_and_tried_again(
    tiny_seamless, examples, tmp_path
):
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
    with pytest.raises(UserError, match="none of 8 audio files can be read: /nowhere"):
        run_baseline(Seamless(tiny_seamless), examples, output)


def test_a_cascade_of_a_recogniser_and_nllb(
    tiny_seamless, tiny_nllb, examples, waves, tmp_path
):
    spoken = {name: task for name, task in REQUESTS.items() if "-asr-" in name}
    heard = write_examples(tmp_path / "asr", waves, spoken, REFERENCES)
    run_baseline(Seamless(tiny_seamless), heard, tmp_path / "recognition")
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


def test_the_transcripts_of_a_joint_model_are_translated(tiny_nllb, tmp_path):
    """Where a decode dir has no asr examples, ``text.transcript`` is read."""
    write_table(tmp_path / "text", {"u0-asr_st-de": "x"})
    write_table(tmp_path / "text.transcript", {"u0-asr_st-de": "a bad cab"})
    requests = {"u0-asr_st-de": ("asr_st", "en", "de")}
    assert run.read_transcripts(tmp_path, requests) == {"u0-asr_st-de": "a bad cab"}


# ---------------------------------------------------------------- the LLM translates


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


def test_each_sentence_pair_is_learnt_once(tmp_path):
    assert sorted(llm.text_pairs(write_pairs(tmp_path / "train"))) == [
        ("goodbye", "au revoir", "en fr"),
        ("please hold", "patientez", "en fr"),
        ("press one", "tapez un", "en fr"),
    ]


def test_the_llm_learns_pairs_and_is_trained_once(
    tiny_model, tmp_path, monkeypatch, waves
):
    """Trained long enough, the tiny LLM has the pairs by heart; so does its copy."""
    train = write_pairs(tmp_path / "train")
    tasks = {"u0-asr-en": "asr en en", "u0-st-fr": "st en fr"}
    references = {"u0-asr-en": "goodbye", "u0-st-fr": "au revoir"}
    examples = write_examples(tmp_path / "examples", waves, tasks, references)
    output = tmp_path / "cascade"

    def translator(**options):
        return llm.TextTranslator(
            tiny_model, train, output, epochs=2, learning_rate=1e-2, **options
        )

    assert run_baseline(translator(), examples, output, examples) == 2
    written = read_table(output / "text")
    assert written["u0-asr-en"] == "goodbye"
    first = translator()
    first.load()
    before = llm.TextTranslator(tiny_model, train, tmp_path / "other", epochs=0)
    before.load()

    def loss(system) -> float:
        from speechllm.text.prompts import answer_tokens

        sources, _, directions = zip(*system.pairs)
        prompts = system.embed(sources, directions)
        answers = [answer_tokens(system.llm.tokenizer, t) for _, t, _ in system.pairs]
        with torch.no_grad():
            return system.llm.answer_loss(prompts, answers)[0].item()

    assert loss(first) < loss(before) - 0.05

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(llm.TextTranslator, "train", no_training)
    (output / "hypotheses.1.jsonl").unlink()
    assert run_baseline(translator(), examples, output, examples) == 2
    assert read_table(output / "text") == written
    alone = translator()
    alone.load()
    assert loss(alone) == pytest.approx(loss(first), abs=1e-5)
    with pytest.raises(UserError, match="from fr into en: no training pair"):
        alone.check("st", "fr", "en")


def test_llm_translations_do_not_depend_on_the_batch(tiny_model, tmp_path):
    train = write_pairs(tmp_path / "train")
    translator = llm.TextTranslator(tiny_model, train, tmp_path, epochs=0)
    translator.load()
    sentences = ["press one now please", "goodbye", "hold"]
    together = translator.answer(sentences, "asr_st", "en", "fr")
    alone = [translator.answer([s], "asr_st", "en", "fr")[0] for s in sentences]
    assert together == alone
    assert [answer["transcript"] for answer in together] == sentences


# ---------------------------------------------------------------- languages


def test_flores_codes_are_those_of_transformers():
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    assert set(languages.FLORES_200.values()) <= set(FAIRSEQ_LANGUAGE_CODES)
    assert languages.flores_code("de") == "deu_Latn"
    assert languages.seamless_code("de") == "deu"
    assert languages.seamless_code("zh") == "cmn"
    assert languages.seamless_code("yue") == "yue"


@pytest.mark.parametrize("recipe", ["must_c", "covost2", "mini_asterisk"])
def test_every_language_of_a_recipe_has_a_code(recipe):
    conf = Path(__file__).parents[2] / "egs2" / recipe / "speechllm1" / "conf"
    for language in read_prompts(conf / "prompts.yaml").languages:
        assert languages.flores_code(language)


def test_an_unknown_language_is_refused_before_anything_is_loaded(
    tiny_nllb, tiny_seamless, tiny_decoder, examples
):
    for system_class, folder in ((Nllb, tiny_nllb), (Seamless, tiny_seamless)):
        with pytest.raises(UserError, match="'xx' has no code"):
            system_class(folder).check("st", "en", "xx")
        with pytest.raises(UserError, match=r"'fi' \(fin"):
            system_class(folder).check("st", "en", "fi")
    with pytest.raises(UserError, match="asr from xx: .* knows af, am, ar"):
        Whisper(tiny_decoder).check("asr", "xx", "xx")
    with pytest.raises(UserError, match="utt2task, u0-asr_st-de: .*into English only"):
        run_baseline(Whisper(tiny_decoder), examples, examples / "out")
    assert not (examples / "out").exists()


# ---------------------------------------------------------------- bad input


def test_a_missing_transcript_is_named(tiny_nllb, examples, tmp_path):
    (tmp_path / "heard").mkdir()
    write_table(tmp_path / "heard" / "text", {"u0-asr-en": "a"})
    with pytest.raises(UserError, match=r"no transcript of u1-.*u1-asr-en is missing"):
        run_baseline(Nllb(tiny_nllb), examples, tmp_path / "out", tmp_path / "heard")


def test_a_model_of_another_kind_is_refused(tiny_nllb):
    with pytest.raises(UserError, match="of kind 'm2m_100', but whisper takes whisper"):
        Whisper(tiny_nllb)


def test_a_malformed_task_is_named(tiny_seamless, examples):
    write_table(examples / "utt2task", {"u0-asr-en": "asr en"})
    with pytest.raises(UserError, match="utt2task, u0-asr-en: expected"):
        run_baseline(Seamless(tiny_seamless), examples, examples / "out")


def test_too_little_gpu_memory_for_the_weights(tiny_nllb, monkeypatch):
    """A GPU that is only told of: the sizes are those of the real model."""
    from transformers import M2M100ForConditionalGeneration

    translator = Nllb(tiny_nllb)
    whole = M2M100ForConditionalGeneration.from_pretrained(tiny_nllb)
    count = sum(p.numel() for p in whole.parameters())
    translator.device = "cuda"
    for free, remedy in ((3 * count, "--dtype bfloat16 takes"), (count, "smaller")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, f=free: (f, 1 << 30))
        with pytest.raises(UserError, match=f"in float32, but cuda has .*{remedy}"):
            translator.load()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * count, 1 << 30))
    translator.check_memory(M2M100ForConditionalGeneration)


def test_too_little_gpu_memory_for_a_batch(tiny_nllb, monkeypatch):
    translator = Nllb(tiny_nllb, beam_size=4)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(translator, "answer", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 28, 16 << 30))
    with pytest.raises(UserError, match=r"16.0 GiB, 0.2 GiB free.*--batch_size 4"):
        run.answer_batch(translator, ["a"] * 8, ("st", "en", "de"))
    with pytest.raises(UserError, match="--beam_size 1, another GPU"):
        run.answer_batch(translator, ["a"], ("st", "en", "de"))
    assert system.gib(3 << 29) == "1.5 GiB"


# ---------------------------------------------------------------- the real Whisper


@pytest.mark.slow
def test_whisper_base_on_real_prompts(asterisk_dir, tmp_path):
    """What Whisper-base makes of prompts that it was never trained on here."""
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
    assert {"id", "text", "tokens"} == line.keys()
