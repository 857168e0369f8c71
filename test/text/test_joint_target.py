"""Joint target (asr_st): joining, splitting, joint search, decoding and scoring.

Joint search is compared with all hypotheses, scored by transformers and torch.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import five_token_llm

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.data.kaldi_table import read_table, write_table
from speechllm.evaluation.score import score_decode_dir
from speechllm.inference.decode_examples import decode_examples
from speechllm.models.llm import LanguageModel
from speechllm.text.joint_target import (
    JointAnswer,
    Separator,
    find_separator,
    join_texts,
    parse_answer,
    split_target,
)
from speechllm.text.prompts import Prompts, answer_tokens
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.text.tasks import Task
from speechllm.training.preprocessor import ExamplePreprocessor
from speechllm.utils.errors import UserError

TEXT = st.text("ab é\t\n|\\p\u3000", max_size=14)
TAB = Separator("\t", (0,))
BAR = Separator("|", (0,))


def write_sentencepiece(folder: Path, **options) -> Path:
    """Write a tokenizer of T5's type over a few characters."""
    folder.mkdir()
    corpus = folder / "corpus.txt"
    corpus.write_text("ab é a b ab| \\p ba\\ é|\n" * 20, "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=options.pop("vocab_size"),
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    )
    return folder


@pytest.fixture(scope="module")
def tokenizers(smollm2, tmp_path_factory):
    """Return tokenizers by name; T5's turns all white space into plain spaces."""
    root = tmp_path_factory.mktemp("tokenizers")
    plain = write_sentencepiece(root / "t5", vocab_size=20)
    bytes_too = write_sentencepiece(
        root / "bytes",
        vocab_size=290,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    folders = {"smollm2": smollm2, "t5": plain, "bytes": bytes_too}
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


def test_separator_of_each_tokenizer(tokenizers):
    found = {name: find_separator(t) for name, t in tokenizers.items()}
    assert {name: s.text for name, s in found.items()} == {
        "smollm2": "\t",
        "t5": "|",
        "bytes": "\t",
    }
    assert all(len(separator.tokens) == 1 for separator in found.values())


@pytest.mark.parametrize("name", ["smollm2", "t5", "bytes"])
@given(transcript=TEXT.filter(str.strip), translation=TEXT.filter(str.strip))
def test_answer_tokens_decode_to_the_same_texts(
    tokenizers, name, transcript, translation
):
    """Also with tabs, line breaks, bars and backslashes in the texts."""
    tokenizer = tokenizers[name]
    tokens = answer_tokens(tokenizer, transcript, translation)
    assert tokens[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    expected = [" ".join(part.split()) for part in (transcript, translation)]
    parsed = parse_answer(text, find_separator(tokenizer))
    assert [parsed.transcript, parsed.translation] == expected
    assert parsed.whole


@given(transcript=TEXT, translation=TEXT)
def test_join_and_split_of_table_targets(transcript, translation):
    expected = [" ".join(part.split()) for part in (transcript, translation)]
    target = join_texts(transcript, translation)
    assert target.count("\t") == 1
    if all(expected):
        assert split_target("asr_st", target, "text, u1") == expected
    else:
        with pytest.raises(UserError, match="text, u1: expected transcript, tab"):
            split_target("asr_st", target, "text, u1")


@given(texts=st.lists(TEXT, min_size=2, max_size=2), cut=st.integers(0, 30))
@pytest.mark.parametrize("separator", [TAB, BAR])
def test_truncated_output_gives_prefixes_of_the_texts(separator, texts, cut):
    whole = [separator.escape(text) for text in texts]
    output = f"{whole[0]}{separator.text}{whole[1]}"[:cut]
    parsed = parse_answer(output, separator)
    if cut <= len(whole[0]):
        assert not parsed.whole and parsed.translation == ""
    expected = [" ".join(text.split()) for text in texts]
    found = parsed.transcript, parsed.translation
    for text, part in zip(expected, found):
        # a truncated escape sequence leaves its backslash
        assert text.startswith((part, part.removesuffix("\\")))


def test_malformed_outputs_are_parsed():
    cases = {
        "hello": JointAnswer("hello", "", False),
        "hello\t": JointAnswer("hello", "", False),
        "\tbonjour": JointAnswer("", "bonjour", False),
        "hello\tbon\tjour": JointAnswer("hello", "bon jour", False),
        "": JointAnswer("", "", False),
        "hello\tbonjour": JointAnswer("hello", "bonjour", True),
    }
    for text, expected in cases.items():
        assert parse_answer(text, TAB) == expected


def test_tokenizer_without_separator_is_an_error():
    class Letters:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) for c in text if c.isalpha()]}

        def decode(self, tokens, skip_special_tokens=False):
            return "".join(map(chr, tokens))

    with pytest.raises(UserError, match="cannot be separated"):
        find_separator(Letters())


def test_preprocessor_joins_both_texts(tokenizers):
    prompts = Prompts({"asr_st": "{speech}:"}, {"en": "English", "fr": "French"})
    preprocess = ExamplePreprocessor(None, tokenizers["smollm2"], prompts)
    example = {"task": "asr_st en fr", "text": "press one\tAppuyez sur un."}
    text = tokenizers["smollm2"].decode(preprocess("u1", example)["text"][:-1])
    assert text == " press one\t Appuyez sur un."
    with pytest.raises(UserError, match="text, example u1: expected transcript, tab"):
        preprocess("u1", {"task": "asr_st en fr", "text": "press one"})


# Joint search

EOS, SEPARATOR = 4, 3  # of the five-token model


@pytest.fixture(scope="module")
def five_tokens() -> LanguageModel:
    return five_token_llm(5, ["a", "a", "a", "a", "a"])


def transcript_of(output: list[int]) -> list[int]:
    """Return the labels of the tokens before the separator: token k is label k + 1."""
    before = itertools.takewhile(lambda token: token != SEPARATOR, output)
    return [token + 1 for token in before]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [0.3, 0.8])
def test_ctc_scores_the_transcript_only(five_tokens, seed, weight):
    """Compare with all hypotheses, scored by torch's CTC loss of their transcripts."""
    from speechllm.decoding.beam_search import beam_search
    from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
    from speechllm.decoding.hypothesis import SearchRequest
    from speechllm.decoding.options import SearchOptions
    from speechllm.text.ctc_labels import END

    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(3, five_tokens.hidden_size, generator=generator)
    logits = 2 * torch.randn(1, 5, 4, generator=generator)
    logits[..., 0] += 3.0  # favours short transcripts
    frames = torch.tensor([5])

    def to_ctc_labels(tokens: list[int]) -> list[int]:
        return transcript_of(tokens) + [END] * (SEPARATOR in tokens)

    options = SearchOptions(beam_size=400, nbest=60, ctc_weight=weight, pre_beam_size=5)
    (found,) = beam_search(
        five_tokens,
        [SearchRequest(prompt, 4, to_ctc_labels)],
        options,
        CTCPrefixScorer(logits, frames),
    )

    @torch.inference_mode()
    def log_prob(output: list[int]) -> float:
        tokens = five_tokens.embed(torch.tensor(output, dtype=torch.long))
        result = five_tokens.causal_lm(inputs_embeds=torch.cat([prompt, tokens])[None])
        positions = torch.arange(len(prompt) - 1, len(prompt) + len(output))
        scores = result.logits[0].log_softmax(1)
        return scores[positions, torch.tensor([*output, EOS])].sum().item()

    def ctc_score(output: list[int]) -> float:
        labels = torch.tensor([transcript_of(output)], dtype=torch.long)
        return -torch.nn.functional.ctc_loss(
            logits.double().log_softmax(2).transpose(0, 1),
            labels,
            frames,
            torch.tensor([labels.shape[1]]),
            reduction="sum",
        ).item()

    outputs = [a for n in range(5) for a in itertools.product(range(4), repeat=n)]
    ranked = sorted(
        ((1 - weight) * log_prob(list(a)) + weight * ctc_score(list(a)), list(a))
        for a in outputs
    )[::-1]
    assert any(SEPARATOR in output[:2] for _, output in ranked[:60])
    assert [h.tokens for h in found] == [output for _, output in ranked[:60]]
    for hypothesis, (score, _) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)


# A complete model


@pytest.fixture(scope="module")
def joint_model(tiny_model, tmp_path_factory) -> Path:
    """Return the tiny model with a prompt for the joint task."""
    folder = tmp_path_factory.mktemp("joint") / "model"
    shutil.copytree(tiny_model, folder)
    with open(folder / "prompts.yaml", "a", encoding="utf-8") as stream:
        stream.write('  asr_st: "{speech} both {source} and {target}:"\n')
    return folder


SHORT = {"tokens_per_second": 0.0, "extra_tokens": 5.0}


def test_ctc_labels_end_at_the_separator(joint_model):
    model = SpeechToText.from_pretrained(joint_model)
    codec = model.codec
    tokens = answer_tokens(codec.tokenizer, "Press one.", "Appuyez")[:-1]
    label_fn = codec.label_fn(Task("asr_st", "en", "fr"))
    labels = model.ctc_tokenizer("press one")
    assert label_fn(tokens) == [*labels, -1]
    assert label_fn(tokens[: tokens.index(197)]) == labels  # SmolLM2's tab
    assert codec.label_fn(Task("st", "en", "fr")) is None
    assert 197 in codec.ctc_candidates("press", Task("asr_st", "en", "fr"))
    assert 197 not in codec.ctc_candidates("press", Task("asr", "en", "en"))


@pytest.mark.parametrize("options", [{}, {"beam_size": 4, "ctc_weight": 0.5}])
def test_joint_output_does_not_depend_on_the_batch(joint_model, speech_file, options):
    """The outputs of a random model are malformed and flagged as such."""
    model = SpeechToText.from_pretrained(joint_model)
    speech = load_audio(speech_file)
    waves = [speech[:9000], speech[4000:30000], speech[100:5000]]
    request = {"task": "asr_st", "language": "en", "target_language": "fr"}
    alone = [model.transcribe([w], **request, **SHORT, **options)[0] for w in waves]
    together = model.transcribe(waves, batch_size=3, **request, **SHORT, **options)
    for one, other in zip(alone, together):
        assert (one.transcript, one.text) == (other.transcript, other.text)
        assert one.tokens == other.tokens and len(one.tokens) <= 10
        assert one.flags == one.entry()["flags"] == ["truncated", "malformed"]


def test_joint_decode_dir_is_scored(joint_model, speech_file, tmp_path, monkeypatch):
    """Transcripts, translations and malformed outputs of one decode dir are scored."""
    examples = tmp_path / "examples"
    examples.mkdir()
    soundfile.write(tmp_path / "a.wav", load_audio(speech_file)[:9000], 16000)
    names = {"a-asr-en": "asr en en", "a-asr_st-fr": "asr_st en fr"}
    names["b-asr_st-fr"] = "asr_st en fr"
    write_table(examples / "utt2task", names)
    write_table(examples / "wav.scp", dict.fromkeys(names, str(tmp_path / "a.wav")))
    write_table(examples / "utt2num_samples", dict.fromkeys(names, "9000"))
    references = {
        "a-asr-en": "Press one.",
        "a-asr_st-fr": "Press one.\tAppuyez sur un.",
        "b-asr_st-fr": "Wait here now.\tAttendez ici.",
    }
    write_table(examples / "text", references)

    outputs = iter([" press one\t Appuyez sur un.", " wait now"])
    parser = "speechllm.text.answer_codec.parse_answer"
    monkeypatch.setattr(
        parser, lambda text, separator: parse_answer(next(outputs), separator)
    )
    decode = tmp_path / "decode"
    decode_examples(joint_model, examples, decode, {**SHORT, "extra_tokens": 40.0})
    assert read_table(decode / "text")["a-asr_st-fr"] == "Appuyez sur un."
    assert read_table(decode / "text")["b-asr_st-fr"] == ""
    assert read_table(decode / "text.transcript") == {
        "a-asr_st-fr": "press one",
        "b-asr_st-fr": "wait now",
    }
    assert "malformed" in read_table(decode / "flags")["b-asr_st-fr"]
    write_table(decode / "flags", {"b-asr_st-fr": "malformed"})

    rows, left_out = score_decode_dir(examples, decode)
    assert left_out == []
    joint = {r["metric"]: r for r in rows if r["task"] == "asr_st"}
    assert joint["wer"]["value"] == 20.0  # one of five words is deleted
    assert joint["wer"]["deletions"] == 1
    assert joint["malformed"]["value"] == 50.0 and joint["malformed"]["malformed"] == 1
    assert 0 < joint["bleu"]["value"] < 100 and joint["ter"]["value"] == 40.0
    assert {r["target_language"] for r in joint.values()} == {"fr"}
    folder = decode / "score_asr_st_en_fr"
    assert json.loads((folder / "scores.json").read_text("utf-8")) == [*joint.values()]
    header, first, second = (folder / "scores.tsv").read_text("utf-8").splitlines()
    assert header.split("\t")[:4] == [
        "id",
        "transcript_errors",
        "transcript_words",
        "transcript_rate",
    ]
    assert first.split("\t")[4:] == [
        "press one",
        "press one",
        "100.00",
        "100.00",
        "Appuyez sur un.",
        "Appuyez sur un.",
    ]
    assert second.split("\t")[1] == "1"

    write_table(decode / "text.transcript", {"a-asr_st-fr": "press one"})
    with pytest.raises(UserError, match="text.transcript: b-asr_st-fr is missing"):
        score_decode_dir(examples, decode)
    (decode / "text.transcript").unlink()
    with pytest.raises(UserError, match="text.transcript: no such file"):
        score_decode_dir(examples, decode)
    write_table(decode / "text.transcript", dict.fromkeys(list(names)[1:], ""))
    write_table(examples / "text", {**references, "b-asr_st-fr": "Wait here now."})
    with pytest.raises(UserError, match="b-asr_st-fr: expected transcript, tab"):
        score_decode_dir(examples, decode)
