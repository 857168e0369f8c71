"""Benchmark of hotwords: errors in rare words with and without lists of them.

Rare words are those of the test transcripts that occur at most once in the training
transcripts of the same languages. A list has rare words first, then other words of
these transcripts, then words of translations, which may be in other languages. Lists of
one set are nested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechllm.data.examples import Example, read_examples
from speechllm.data.kaldi_table import read_table
from speechllm.inference.generation_config import Config
from speechllm.inference.results import make_result
from speechllm.inference.tuning import encoded_batches
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, normalize
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText

SHORTEST = 4  # letters of a word in a list
MOST_FREQUENT = 1  # occurrences of a rare word in the distinct training transcripts


@dataclass(frozen=True)
class WordErrors:
    """Errors in the words of a list and in other words.

    Attributes:
        listed, others: number of words in the references.
        listed_wrong: substituted and deleted words of the list.
        others_wrong: substituted and deleted other words, and inserted words.
        false: words of the list in the outputs where the references have none.
    """

    listed: int = 0
    others: int = 0
    listed_wrong: int = 0
    others_wrong: int = 0
    false: int = 0


def benchmark_hotwords(
    model_dir: str,
    examples: str,
    train: str,
    sizes: Sequence[int] = (10, 100, 1000),
    bonuses: Sequence[float] = (),
    limit: int | None = None,
    config: Config | None = None,
    batch_size: int = 8,
    device: str = "cpu",
) -> str:
    """Return a Markdown table.

    Args:
        model_dir: model folder.
        examples: example dir of the test set, of which ``asr`` in languages with spaces
            is decoded.
        train: data dir of the training set.
        sizes: number of words of each list; fewer if there are no more.
        bonuses: values of ``hotword_bonus``; that of the model's settings if empty.
        limit: maximum number of utterances that are decoded, evenly spaced; the lists
            are those of the whole set.
        config: decoding config, in place of the settings of the model.

    Raises:
        UserError: there are no such examples, or no rare words.
    """
    from speechllm.inference.speech_to_text import SpeechToText

    spoken = [e for e in read_examples(examples) if is_counted(e)]
    if not spoken:
        raise UserError(f"{examples}: no asr in a language with spaces between words")
    languages = {e.task.source for e in spoken}
    references = [normalize(e.text, e.task.source).split() for e in spoken]
    words = word_list(references, training_words(train, languages))
    spoken, references = evenly(spoken, limit), evenly(references, limit)
    model = SpeechToText.from_pretrained(model_dir, device, config=config)
    bonuses = bonuses or [model.options({}).hotword_bonus]
    conditions: list[dict[str, Any]] = [
        {"hotwords": words[:size], "hotword_bonus": bonus}
        for size in sizes
        for bonus in bonuses
    ]
    plain, *biased = decode(model, spoken, [{}, *conditions], batch_size)
    rows = []
    for condition, found in zip(conditions, biased, strict=True):
        listed, bonus = condition["hotwords"], condition["hotword_bonus"]
        pair = [word_errors(references, texts, set(listed)) for texts in (plain, found)]
        rows.append(table_line(len(listed), bonus, *pair))
    names = [
        "words in the list",
        "bonus",
        "listed words spoken",
        "wrong %, without",
        "with",
        "other words",
        "wrong %, without",
        "with",
        "false insertions, without",
        "with",
    ]
    return "\n".join([f"| {' | '.join(names)} |", "|" + " ---: |" * 10, *rows]) + "\n"


def is_counted(example: Example) -> bool:
    """Return whether an example is recognition in a language with spaces."""
    task = example.task
    return task.name == "asr" and task.source not in LANGUAGES_WITHOUT_SPACES


def training_words(folder: str | Path, languages: AbstractSet[str]) -> Counter[str]:
    """Count the words of a training set in its distinct transcripts in ``languages``.

    Words of other texts of the data dir, translations included, have the count 0.
    """
    folder = Path(folder)
    languages_of = read_table(folder / "utt2lang")
    texts = read_table(folder / "text")
    spoken = {(languages_of[name], text) for name, text in texts.items()}
    counts: Counter[str] = Counter()
    for language, text in spoken:
        for word in normalize(text, language).split():
            counts[word] += language in languages
    for path in sorted(folder.glob("text.*")):
        language = path.suffix[1:]
        if language not in LANGUAGES_WITHOUT_SPACES:
            for text in set(read_table(path).values()):
                counts.update(dict.fromkeys(normalize(text, language).split(), 0))
    return counts


def word_list(references: Iterable[Sequence[str]], training: Counter[str]) -> list[str]:
    """Return the rare words of the references, then words that are not in them.

    The latter are those of the training transcripts, then those of other texts. Each
    part is in an order that does not depend on the words' meaning or spelling.

    Raises:
        UserError: no word is rare.
    """
    spoken = {word for reference in references for word in reference}
    rare = {word for word in spoken if training[word] <= MOST_FREQUENT}
    other = training.keys() - spoken
    transcribed = {word for word in other if training[word]}
    parts = [
        sorted(
            (word for word in part if len(word) >= SHORTEST),
            key=lambda word: sha256(word.encode()).digest(),
        )
        for part in (rare, transcribed, other - transcribed)
    ]
    if not parts[0]:
        raise UserError("no word of the test set is rare in the training set")
    return [word for part in parts for word in part]


def decode(
    model: SpeechToText,
    examples: Sequence[Example],
    conditions: Sequence[dict[str, Any]],
    batch_size: int,
) -> list[list[list[str]]]:
    """Decode examples with several options of the search.

    The speech is encoded once, unless a first pass or prompts depend on the options.

    Returns:
        For each of ``conditions`` the normalised words of each example.
    """
    found: list[dict[str, list[str]]] = [{} for _ in conditions]
    for part, encoded in encoded_batches(model, examples, batch_size):
        for condition, words in zip(conditions, found):
            options, batch = model.options(condition), encoded
            if options.first_pass_beam_size or model.prompts.max_hotword_tokens:
                batch = model.encode(encoded.waves, encoded.tasks, options)
            nbests = model.search(batch, options)
            decisions = model.apply_guard(batch, nbests, options)
            for row, (example, decision) in enumerate(zip(part, decisions)):
                text = make_result(model.codec, batch, row, decision.nbest).text
                words[example.name] = normalize(text, example.task.source).split()
    return [[words[example.name] for example in examples] for words in found]


def word_errors(
    references: Sequence[Sequence[str]],
    texts: Sequence[Sequence[str]],
    listed: AbstractSet[str],
) -> WordErrors:
    """Count the errors in words of a list and in other words."""
    import jiwer

    counts: Counter[str] = Counter()
    for reference, text in zip(references, texts, strict=True):
        counts.update("listed" if w in listed else "others" for w in reference)
        found = jiwer.process_words(" ".join(reference), " ".join(text))
        for chunk in found.alignments[0]:
            if chunk.type == "equal":
                continue
            for word in reference[chunk.ref_start_idx : chunk.ref_end_idx]:
                counts["listed_wrong" if word in listed else "others_wrong"] += 1
            new = text[chunk.hyp_start_idx : chunk.hyp_end_idx]
            counts["false"] += sum(word in listed for word in new)
            if chunk.type == "insert":
                counts["others_wrong"] += len(new)
    return WordErrors(**counts)


def table_line(size: int, bonus: float, without: WordErrors, biased: WordErrors) -> str:
    """Return a line of the table."""

    def percent(wrong: int, total: int) -> str:
        return f"{100 * wrong / max(total, 1):.1f}"

    listed = [percent(e.listed_wrong, e.listed) for e in (without, biased)]
    others = [percent(e.others_wrong, e.others) for e in (without, biased)]
    false = [str(e.false) for e in (without, biased)]
    cells = [f"{size}", f"{bonus:g}", f"{without.listed}", *listed]
    cells += [f"{without.others}", *others, *false]
    return f"| {' | '.join(cells)} |"
