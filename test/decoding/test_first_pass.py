"""First pass: choice of the transcript, and the list pooled from three models."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.decoding.first_pass import (
    FirstPass,
    choose_transcript,
    equally_padded,
    make_first_pass,
)
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.pooling import pool_nbest
from speechllm.models.speech_decoder import SpeechDecoder, padded_samples
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

SHORT = {"tokens_per_second": 0.0, "extra_tokens": 6.0}
LLM = {"ten": -1.0, "tan": -2.0, "tin": -3.0, "ton": -6.0}
CTC = {"ten": -8.0, "tan": -9.0, "tin": -5.0, "ton": -4.0}
DECODER = {"ten": -7.0, "Tan.": -1.0, "tan": -20.0, "tin": -4.0, "ton": -9.0}


class FixedDecoder:
    """A decoder of fixed log probabilities, which counts the texts it scores."""

    scored = 0

    def log_probs(self, states, texts, language, translate=False):
        self.scored += len(texts)
        return [DECODER.get(text, -50.0) for text in texts]


class FixedLLM:
    eos_id = 0

    def answer_log_probs(self, prompts, answers):
        words = [bytes(ids[:-1]).decode() for ids in answers]
        # one value for each token and one for the end
        return [
            torch.tensor([LLM[w]] + [0.0] * (len(ids) - 1))
            for w, ids in zip(words, answers)
        ]


def pooled(ctc_weight: float, decoder_weight: float, nbest=("ten", "tin")):
    """Return the ranked texts of a pool of LLM ("ten", "tin"), first pass and CTC."""
    decoder = FixedDecoder()
    first = FirstPass(["Tan."], np.zeros(1), torch.zeros(1, 1), "en", decoder)
    batch = SimpleNamespace(
        tasks=[Task("asr", "en", "en")],
        first_pass=[first],
        prompt_embeds=[torch.zeros(1, 1)],
        ctc_text=lambda row: "ton",
        ctc_scores=lambda row, labels: [CTC[bytes(ids).decode()] for ids in labels],
    )
    codec = SimpleNamespace(
        decode=lambda tokens: bytes(tokens).decode(),
        encode=lambda text: list(text.encode()),
        hotword_trie=lambda words: None,
        ctc_tokenizer=SimpleNamespace(scoring_units=lambda text: list(text.encode())),
    )
    options = SearchOptions(
        first_pass_beam_size=1,
        rescore_ctc_weight=ctc_weight,
        rescore_decoder_weight=decoder_weight,
    )
    hypotheses = [Hypothesis(list(t.encode()), llm_score=LLM[t.lower()]) for t in nbest]
    ranked = pool_nbest(FixedLLM(), codec, batch, 0, hypotheses, options)
    return {bytes(h.tokens).decode(): round(h.score, 6) for h in ranked}, decoder


@pytest.mark.parametrize(
    ("ctc_weight", "decoder_weight", "best"),
    [(0.0, 0.0, "ten"), (1.0, 0.0, "ton"), (0.0, 1.0, "tan"), (0.3, 0.4, "tan")],
)
def test_whole_weight_on_one_model_ranks_by_it(ctc_weight, decoder_weight, best):
    scores, _ = pooled(ctc_weight, decoder_weight)
    assert set(scores) == {"ten", "tin", "tan", "ton"}
    assert next(iter(scores)) == best
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    by_decoder = {**{t: DECODER[t] for t in LLM}, "tan": DECODER["Tan."]}
    for text, score in scores.items():
        rest = 1 - ctc_weight - decoder_weight
        expected = (
            ctc_weight * CTC[text]
            + decoder_weight * by_decoder[text]
            + rest * LLM[text]
        )
        assert score == pytest.approx(expected)


def test_texts_keep_their_form_with_a_model_that_writes_sentences():
    LLM["Tan."] = -2.0
    try:
        scores, _ = pooled(0.0, 1.0, nbest=("Ten",))
    finally:
        del LLM["Tan."]
    assert next(iter(scores)) == "Tan."


def test_the_decoder_scores_a_text_as_it_is_written(monkeypatch):
    monkeypatch.setitem(DECODER, "TEN", -0.5)
    monkeypatch.setitem(LLM, "Tan.", -2.0)
    scores, _ = pooled(0.0, 1.0, nbest=("TEN", "tin"))
    assert (scores["TEN"], scores["tin"]) == (-0.5, DECODER["tin"])


@pytest.mark.parametrize(
    ("nbest", "best"),
    [(["", "tin"], "tan"), (["", "Tin."], "Tan."), ([""], "Tan."), (["."], "Tan.")],
)
def test_an_empty_hypothesis_does_not_make_the_pool_plain(nbest, best, monkeypatch):
    for text in ("", ".", "tin.", "Tan."):
        monkeypatch.setitem(LLM, text, -9.0)
    scores, _ = pooled(0.0, 1.0, nbest)
    assert next(iter(scores)) == best


def test_each_text_is_scored_once_by_the_decoder():
    decoder = FixedDecoder()
    first = FirstPass(["Tan.", "ton"], np.zeros(1), torch.zeros(1, 1), "en", decoder)
    assert first.scores(["tan", "ton"]) == [-1.0, -9.0]
    scored = decoder.scored
    assert first.scores(["ton", "tan"]) == [-9.0, -1.0]
    assert decoder.scored == scored


def test_the_bridge_reads_the_best_transcript_of_decoder_and_ctc():
    first = FirstPass(
        ["Tan.", "Tin"], np.zeros(1), torch.zeros(1, 1), "en", FixedDecoder()
    )

    def ctc_scores(texts):
        return [CTC[text] for text in texts]

    choose = [
        choose_transcript(
            first, ctc_scores, SearchOptions(1, rescore_ctc_weight=c, **decoder)
        )
        for c, decoder in (
            (0.0, {}),
            (0.0, {"rescore_decoder_weight": 0.5}),
            (0.9, {"rescore_decoder_weight": 0.1}),
        )
    ]
    assert choose == ["tan", "tan", "tin"]
    empty = FirstPass([], np.zeros(1), torch.zeros(1, 1), "en", FixedDecoder())
    assert choose_transcript(empty, ctc_scores, SearchOptions()) == ""


@pytest.fixture(scope="module")
def model(tiny_model, whisper_base) -> SpeechToText:
    model = SpeechToText.from_pretrained(tiny_model)
    model.load_speech_decoder = lambda: SpeechDecoder(whisper_base)
    return model


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    speech = load_audio(speech_file)
    return [speech, speech[:30000], speech[8000:40000]]


def test_a_random_model_writes_what_whisper_heard(model, waves):
    options = {**SHORT, "first_pass_beam_size": 3, "rescore_decoder_weight": 1.0}
    alone = [model.transcribe([wave], **options)[0] for wave in waves]
    expected = model.speech_decoder.search(
        model.speech_decoder.encode(waves), ["en"] * 3, beam_size=3
    )
    assert [r.text.lower() for r in alone] == [texts[0].lower() for texts in expected]
    together = model.transcribe(waves, batch_size=2, **options)
    assert [r.text for r in together] == [r.text for r in alone]
    for one, other in zip(together, alone):
        assert one.score == pytest.approx(other.score, abs=1e-2)


def test_without_a_weight_the_llm_ranks_the_pool(model, waves):
    plain = model.transcribe(waves, beam_size=2, **SHORT)
    options = {"first_pass_beam_size": 2, "rescore_decoder_weight": 0.0}
    pool = model.transcribe(waves, beam_size=2, **options, **SHORT)
    for before, after in zip(plain, pool):
        assert after.score >= before.score - 1e-3


def test_known_transcripts_are_not_made_again(model, waves, monkeypatch):
    decoder = model.speech_decoder
    known = {}
    first = make_first_pass(decoder, waves[:2], ["en", "en"], 2, known)
    monkeypatch.setattr(decoder, "search", lambda *args: pytest.fail("searched again"))
    again = make_first_pass(decoder, waves[1::-1], ["en", "en"], 2, known)
    assert [f.texts for f in again] == [f.texts for f in first[::-1]]
    assert [f.states for f in again] == [None, None]
    assert again[1].scores(["a b"]) == pytest.approx(first[0].scores(["a b"]), abs=1e-3)


def test_the_batch_does_not_affect_texts_of_short_input(whisper_base, waves):
    decoder = SpeechDecoder(whisper_base, finetuned=True)
    assert equally_padded(decoder, waves, [0, 1, 2]) == [[1], [2], [0]]
    together = make_first_pass(decoder, [*waves, waves[1][:20000]], ["en"] * 4, 2)
    alone = [make_first_pass(decoder, [wave], ["en"], 2)[0] for wave in waves]
    assert [f.texts for f in together[:3]] == [f.texts for f in alone]
    assert [len(f.states) for f in together] == [250, 150, 200, 150]  # 50 a second


def test_long_utterances_are_decoded_few_at_a_time(decoder_of_short_input):
    waves = [np.zeros(samples) for samples in (*[8000] * 31, 480_000, 479_000, 10)]
    batches = equally_padded(decoder_of_short_input, waves, range(len(waves)))
    assert batches == [list(range(30)), [30, 33], [31, 32]]


@pytest.fixture
def decoder_of_short_input():
    return SimpleNamespace(input_samples=lambda wave: padded_samples(len(wave)))


def test_the_fine_tuned_model_of_the_folder_is_used(tiny_model, whisper_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    shutil.copytree(whisper_base, folder / "first_pass")
    decoder = SpeechToText.from_pretrained(folder).speech_decoder
    assert decoder.finetuned
    assert decoder.folder == folder / "first_pass"
    (folder / "first_pass" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"first_pass/config\.json"):
        SpeechToText.from_pretrained(folder)


def test_an_encoder_without_a_decoder_makes_no_first_pass(tiny_model, caplog):
    model = SpeechToText.from_pretrained(tiny_model)  # without Whisper's tokenizer
    assert model.load_speech_decoder is None
    options = model.options({"first_pass_beam_size": 3, "rescore_decoder_weight": 0.5})
    assert options == model.options({})
    assert "first_pass_beam_size has no effect" in caplog.text
