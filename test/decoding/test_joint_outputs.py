"""Transcript and translation of ``asr_st`` chosen in turn, with a first pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.decoding.first_pass import add_translations, make_first_pass
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.pooling import pool_transcripts
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.text.normalization import ctc_text

SHORT = {"tokens_per_second": 0.0, "extra_tokens": 6.0, "first_pass_beam_size": 2}
INTO_ENGLISH = {"task": "asr_st", "language": "fr", "target_language": "en"}


@pytest.fixture(scope="module")
def model(tiny_model, whisper_base, tmp_path_factory) -> SpeechToText:
    """Return the tiny model with a prompt for ``asr_st``, and Whisper-base."""
    folder = tmp_path_factory.mktemp("joint") / "model"
    shutil.copytree(tiny_model, folder)
    with open(folder / "prompts.yaml", "a", encoding="utf-8") as stream:
        stream.write('  asr_st: "{speech} both {source} and {target}:"\n')
    model = SpeechToText.from_pretrained(folder)
    model.load_speech_decoder = lambda: SpeechDecoder(whisper_base)
    model.first_passes = {}
    return model


@pytest.fixture(scope="module")
def french(asterisk_dir: Path) -> list[np.ndarray]:
    (folder,) = asterisk_dir.glob("usr/share/asterisk/sounds/fr_*")
    return [load_audio(folder / f"{name}.g722") for name in ("agent-pass", "goodbye")]


def decode(model: SpeechToText, waves, request=INTO_ENGLISH, **options) -> list:
    weights = {"rescore_decoder_weight": 0.0, "rescore_translation_weight": 0.0}
    return model.transcribe(waves, **request, **{**SHORT, **weights, **options})


def test_the_whole_weight_on_whisper_gives_its_two_texts(model, french):
    decoder = model.speech_decoder
    states = decoder.encode(french)
    heard = decoder.search(states, ["fr", "fr"], 2)
    translated = decoder.search(states, ["fr", "fr"], 2, translate=True)
    options = {"rescore_decoder_weight": 1.0, "rescore_translation_weight": 1.0}
    results = decode(model, french, beam_size=2, **options)
    for result, texts, translations in zip(results, heard, translated):
        assert result.transcript.lower() == texts[0].lower()
        assert result.text == translations[0]
        assert not result.flags
    single = [decode(model, [wave], beam_size=2, **options)[0] for wave in french]
    assert [(r.transcript, r.text) for r in single] == [
        (r.transcript, r.text) for r in results
    ]


def test_the_llm_translates_the_chosen_transcript(model, french):
    """Greedy tokens after the transcript are those of the LLM's own logits."""
    codec, llm = model.codec, model.llm
    (result,) = decode(model, french[:1], rescore_decoder_weight=1.0)
    options = model.options({**SHORT, "rescore_decoder_weight": 1.0})
    task = model.request("asr_st", "fr", "en")
    batch = model.encode(french[:1], [task], options)
    transcript = codec.encode_part(result.transcript)
    prefix = [*transcript, *codec.separator.tokens]
    with torch.inference_mode():
        tokens: list[int] = []
        while len(tokens) < 6:  # the limit of SHORT
            (begin,) = llm.embed_lists([[*prefix, *tokens]])
            inputs = torch.cat([batch.prompt_embeds[0], begin])[None]
            logits = llm.causal_lm(inputs_embeds=inputs).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == llm.eos_id:
                tokens.pop()
                break
    names = codec.tokenizer.convert_ids_to_tokens([*prefix, *tokens])
    assert result.tokens == names


def test_scores_are_the_weighted_sums_of_the_two_parts(model, french):
    codec, llm = model.codec, model.llm
    weights = {
        "rescore_decoder_weight": 0.4,
        "rescore_ctc_weight": 0.2,
        "rescore_translation_weight": 0.3,
    }
    options = model.options({**SHORT, **weights})
    task = model.request("asr_st", "fr", "en")
    batch = model.encode(french[:1], [task], options)
    ((best,),) = model.search(batch, options)
    answer = codec.parse(codec.decode(best.tokens))
    end = len(codec.encode_part(answer.transcript)) + len(codec.separator.tokens)
    output = [*best.tokens, llm.eos_id]
    (log_probs,) = llm.answer_log_probs(batch.prompt_embeds, [output])
    by_llm = [log_probs[:end].sum().item(), log_probs[end:].sum().item()]
    first = batch.first_pass[0]
    spoken = codec.ctc_tokenizer.scoring_units(ctc_text(answer.transcript, "fr"))
    (by_ctc,) = batch.ctc_scores(0, [spoken])
    (heard,) = first.scores([answer.transcript])
    (translated,) = first.translation_scores([answer.translation])
    expected = 0.4 * heard + 0.2 * by_ctc + 0.4 * by_llm[0]
    expected += 0.3 * translated + 0.7 * by_llm[1]
    assert best.score == pytest.approx(expected, abs=1e-2)
    assert best.llm_score == pytest.approx(sum(by_llm), abs=1e-2)
    assert best.token_log_probs == pytest.approx(log_probs[:-1].tolist(), abs=1e-2)


def test_translations_are_ranked_for_one_transcript(model, french):
    options = {"beam_size": 3, "nbest": 9, "rescore_decoder_weight": 1.0}
    (result,) = decode(model, french[:1], rescore_translation_weight=1.0, **options)
    codec = model.codec
    answers = [codec.parse(text) for text, _ in result.nbest]
    assert {answer.transcript for answer in answers} == {result.transcript}
    assert len({answer.translation for answer in answers}) == len(answers) > 3
    scores = [score for _, score in result.nbest]
    assert scores == sorted(scores, reverse=True)


def test_whisper_translates_into_english_only(model, french):
    options = {"rescore_decoder_weight": 1.0, "rescore_translation_weight": 1.0}
    request = {"task": "asr_st", "language": "fr", "target_language": "es"}
    try:
        model.prompts.languages["es"] = "Spanish"
        with_weight = decode(model, french[:1], request, **options)
        without = decode(model, french[:1], request, rescore_decoder_weight=1.0)
    finally:
        model.prompts.languages.pop("es", None)
    assert with_weight[0].entry() == without[0].entry()


def test_translations_are_made_once(model, french, monkeypatch):
    decoder, known = model.speech_decoder, {}
    passes = make_first_pass(decoder, french, ["fr", "fr"], 2, known)
    add_translations(passes, 2)
    found = [first.translations for first in passes]
    assert all(found)
    monkeypatch.setattr(decoder, "search", lambda *args: pytest.fail("searched again"))
    again = make_first_pass(decoder, french, ["fr", "fr"], 2, known)
    add_translations(again, 2)
    assert [first.translations for first in again] == found
    scores = [first.translation_scores(first.translations) for first in passes]
    (other,) = again[:1]
    assert other.translation_scores(found[0]) == pytest.approx(scores[0], abs=1e-3)


def test_an_utterance_without_any_transcript_keeps_its_outputs(model, french):
    options = model.options({**SHORT, "rescore_decoder_weight": 1.0})
    task = model.request("asr_st", "fr", "en")
    batch = model.encode(french[:1], [task], options)
    batch.first_pass[0].texts[:] = [""]
    batch.ctc_texts = [""]
    assert pool_transcripts(model.llm, model.codec, batch, 0, [], options) == []


def test_a_transcript_that_was_cut_off_is_not_chosen(model, french):
    """A random LLM writes to its limit, so CTC and Whisper are left."""
    codec = model.codec
    options = model.options({**SHORT, "rescore_decoder_weight": 0.0})
    task = model.request("asr_st", "fr", "en")
    batch = model.encode(french[:1], [task], options)
    cut = Hypothesis(codec.encode("abc"), truncated=True)
    whole = Hypothesis([*codec.encode("abc"), *codec.separator.tokens], truncated=True)

    def texts(*nbest):
        ranked = pool_transcripts(model.llm, codec, batch, 0, nbest, options)
        return {codec.decode(h.tokens).strip() for h in ranked}

    assert texts(whole) == {"abc"} | texts(cut)
    assert "abc" not in texts(cut)


def test_a_translation_has_what_the_transcript_leaves(model, french):
    options = {"rescore_decoder_weight": 1.0, "extra_tokens": 30.0}
    (result,) = decode(model, french[:1], retry_truncated=False, **options)
    codec = model.codec
    begin = len(codec.encode_part(result.transcript)) + len(codec.separator.tokens)
    assert result.flags == ["truncated", "malformed"]  # a random LLM does not end
    assert len(result.tokens) - begin == max(30, 60 - begin)
