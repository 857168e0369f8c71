"""Lists of hotwords in training."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import yaml

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.export.exported_model import export_model
from speechllm.text.prompts import read_prompts
from speechllm.text.tasks import Task
from speechllm.training.hotword_sampling import (
    HotwordSampler,
    ListOptions,
    build_hotword_sampler,
    count_words,
)
from speechllm.training.preprocessor import ExamplePreprocessor
from speechllm.training.progress import ProgressIterFactory
from speechllm.utils.errors import UserError

ENGLISH, FRENCH = Task("asr", "en", "en"), Task("st", "en", "fr")
PROMPTS = """\
hotwords: "Words: {words}\\n"
languages: {en: English, fr: French}
tasks:
  asr: "{hotwords}{speech} in {source}:"
  st: "{speech} in {target}:"
"""


def sampler(tokenizer, **options) -> HotwordSampler:
    """Return a sampler over 400 words, of which "often" is frequent."""
    counts = Counter(
        {f"{a}{b}word": 1 for a in "abcdefghijklmnopqrst" for b in "12345"}
    )
    counts = Counter({word.replace("1", "um"): 1 for word in counts} | {"often": 1000})
    counts["rare"] = 1
    return HotwordSampler(ListOptions(**options), {ENGLISH: counts}, tokenizer, 1)


def test_words_of_all_scripts_are_counted(tmp_path):
    (tmp_path / "text").write_text(
        "a It's the voicemail, voicemail 2024!\n"
        "b Vous avez entré l'option occupée.\n"
        "c 今日は東京タワーへ行きました。\n"
    )
    tasks = "a asr en en\nb st en fr\nc asr ja ja\n"
    (tmp_path / "utt2task").write_text(tasks)
    found = count_words(str(tmp_path / "text"), str(tmp_path / "utt2task"))
    assert found == {
        ENGLISH: {"voicemail": 2},
        FRENCH: dict.fromkeys(["Vous", "avez", "entré", "option", "occupée"], 1),
        Task("asr", "ja", "ja"): dict.fromkeys(["今日", "東京", "タワー"], 1),
    }
    for name in ("text", "utt2task"):  # in two splits
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / f"{name}_splits").mkdir()
        for number, part in enumerate((lines[:1], lines[1:])):
            path = tmp_path / f"{name}_splits" / f"split.{number}"
            path.write_text("".join(part))
    splits = [str(tmp_path / f"{name}_splits") for name in ("text", "utt2task")]
    assert count_words(*splits) == found


def test_a_list_depends_on_seed_epoch_and_utterance(tokenizer):
    texts = ["often a rare word"]
    lists = sampler(tokenizer, without=0.0)
    first = [lists.draw(f"u{i}", ENGLISH, texts, 1) for i in range(20)]
    again = sampler(tokenizer, without=0.0)
    order = [*reversed(range(20))]
    assert [again.draw(f"u{i}", ENGLISH, texts, 1) for i in order] == first[::-1]
    assert len({*first}) > 15
    second = [lists.draw(f"u{i}", ENGLISH, texts, 2) for i in range(20)]
    assert sum(a == b for a, b in zip(first, second)) < 5
    lists.seed = 2
    assert [lists.draw(f"u{i}", ENGLISH, texts, 1) for i in range(20)] != first
    lists.redraw = False  # validation
    assert lists.draw("u", ENGLISH, texts, 1) == lists.draw("u", ENGLISH, texts, 5)


def test_true_and_false_words(tokenizer):
    """Shares of lists, of true words, and sizes, against their definitions."""
    texts = ["often a rare one, unknown"]
    lists = sampler(tokenizer, without=0.25, true_words=2)
    drawn = [lists.draw(f"u{i}", ENGLISH, texts, 1) for i in range(800)]
    assert np.mean([not words for words in drawn]) == pytest.approx(0.25, abs=0.05)
    drawn = [words for words in drawn if words]
    true = [[w for w in words if w in ("often", "rare", "unknown")] for words in drawn]
    assert {len(words) for words in true} == {0, 1, 2}
    assert np.mean([len(words) for words in true]) == pytest.approx(1.0, abs=0.1)
    counts = Counter(word for words in true for word in words)
    assert counts["rare"] > 10 * counts["often"] and "one" not in counts
    sizes = [len(tokenizer(" " + ", ".join(words))["input_ids"]) for words in drawn]
    assert max(sizes) <= 48 < max(sizes) + 8 and min(sizes) < 8
    places = [words.index("rare") / len(words) for words in drawn if "rare" in words]
    assert np.mean(places) == pytest.approx(0.45, abs=0.1)  # anywhere in the list
    none = sampler(tokenizer, without=0.0, true_words=0, false_words=1)
    assert {len(none.draw(f"u{i}", ENGLISH, texts, 1)) for i in range(50)} <= {0, 1}
    assert lists.draw("u", FRENCH, texts, 1) == ()  # no words are known


def test_the_epoch_reaches_the_preprocessor(tokenizer, tmp_path):
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    prompts = read_prompts(tmp_path / "prompts.yaml")
    lists = sampler(tokenizer, without=0.0)
    preprocess = ExamplePreprocessor(None, tokenizer, prompts, None, lists)

    class Factory:
        dataset = Namespace(preprocess=preprocess)

        def build_iter(self, epoch, shuffle):
            return [preprocess("u", {"text": "often rare", "task": "asr en en"})]

    def prefix(epoch: int) -> str:
        (found,) = ProgressIterFactory(Factory(), 9).build_iter(epoch).batches
        return tokenizer.decode(found["prompt_prefix"])

    for epoch in (1, 2, 1):
        listed = ", ".join(lists.draw("u", ENGLISH, ["often rare"], epoch))
        assert prefix(epoch) == f"Words: {listed}\n"
    lists.options = ListOptions(without=1.0)
    assert prefix(1) == ""


def test_training_export_and_decoding(train, examples, tmp_path, speech_file):
    """A model trained with lists has them in its prompts, others do not."""
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    options = ["--prompts", str(tmp_path / "prompts.yaml")]
    lists = {"max_tokens": 9, "without": 0.0, "false_words": 3}
    waves = [load_audio(speech_file), load_audio(speech_file)[:20000]]
    short = {"language": "en", "tokens_per_second": 0.0, "extra_tokens": 6.0}
    words = [f"weasel {i}" for i in range(30)]
    for conf in (lists, {}):
        folder = tmp_path / f"exp{len(conf)}"
        train(folder, *options, hotword_conf=conf, max_epoch=1)
        export_model(folder, "latest.pth", folder / "model")
        config = yaml.safe_load((folder / "model/config.yaml").read_text())
        assert config.get("max_hotword_tokens") == conf.get("max_tokens")
        model = SpeechToText.from_pretrained(folder)
        tasks = [ENGLISH] * 2
        plain = model.encode(waves, tasks, model.options({}))
        listed = model.encode(waves, tasks, model.options({"hotwords": words}))
        more = [
            len(after) - len(before)
            for before, after in zip(plain.prompt_embeds, listed.prompt_embeds)
        ]
        assert all(0 < size <= 9 + 3 for size in more) if conf else more == [0, 0]
        found = model.transcribe(waves, hotwords=words, hotword_bonus=0.0, **short)
        alone = [
            model.transcribe([w], hotwords=words, hotword_bonus=0.0, **short)[0]
            for w in waves
        ]
        assert [r.text for r in found] == [r.text for r in alone]
        without = model.transcribe(waves, **short)
        scores = [r.score for r in without]
        assert (scores == [r.score for r in found]) is not bool(conf)


def test_training_texts_without_words_are_refused(tmp_path, tokenizer):
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    prompts = read_prompts(tmp_path / "prompts.yaml")
    (tmp_path / "text").write_text("a yes no\n")
    (tmp_path / "utt2task").write_text("a asr en en\n")
    tables = [
        (str(tmp_path / "text"), "text", "text"),
        (str(tmp_path / "utt2task"), "task", "text"),
    ]
    args = Namespace(
        hotword_conf={"without": 0.5}, train_data_path_and_name_and_type=tables, seed=1
    )
    with pytest.raises(UserError, match="text: no words for lists of hotwords"):
        build_hotword_sampler(args, prompts, tokenizer, True)
    args.train_data_path_and_name_and_type = []  # lengths are counted without lists
    assert build_hotword_sampler(args, prompts, tokenizer, True) is None
