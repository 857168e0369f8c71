"""Data dirs of a user's own data: selection, ids, sets and tables."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechllm.corpora._texts import clean_text
from speechllm.corpora.own_data.checks import Finding, Utterance, check_utterances
from speechllm.corpora.own_data.items import SETS, Item, ReadOptions, Source
from speechllm.corpora.own_data.source import first_dropped, too_long
from speechllm.corpora.own_data.splits import Member, split_members
from speechllm.data.data_dir import fill_data_dir
from speechllm.data.kaldi_table import DATA_DIR, Dropped
from speechllm.text.normalization import ctc_text
from speechllm.utils.errors import UserError
from speechllm.utils.folders import atomic_directory

UNKNOWN_SECONDS = 5.0  # assumed length where it is unknown
_TOO_MUCH_LEFT_OUT = 0.1  # share of the speech in recordings that are too long
_NOT_IN_ID = re.compile(r"[^\w.]+")
_LONGEST_NAME = 80  # characters of a part of an id


@dataclass(frozen=True)
class Corpus:
    """The prepared sets.

    Attributes:
        utterances: of all sets.
        items: what each utterance was made of.
        dropped: entries that were left out.
        findings: warnings.
        notes: lines for the report.
    """

    utterances: list[Utterance]
    items: list[Item]
    dropped: list[Dropped]
    findings: list[Finding]
    notes: list[str]


def build_corpus(
    source: Source,
    options: ReadOptions,
    dev_share: float | None,
    test_share: float | None,
    max_seconds: float,
) -> Corpus:
    """Drop what is not usable, split the rest and check it.

    Raises:
        UserError: nothing is left, or too little for three sets.
    """
    _require_language(source, options)
    kept: list[Item] = []
    seen = set()
    for item in source.items:
        span = (item.end or item.seconds or 0.0) - (item.start or 0.0)
        place = (item.audio, item.start, item.end)
        if item.language and item.language != options.language:
            source.drop(item.name, "other language", f"{item.origin}: {item.language}")
        elif not clean_text(item.text):
            source.drop(item.name, "empty text", item.origin)
        elif not ctc_text(item.text, options.language):
            source.drop(
                item.name, "no words", f"{item.origin}: {clean_text(item.text)}"
            )
        elif place in seen:
            source.drop(item.name, "listed twice", f"{item.origin}: {item.audio}")
        elif span > max_seconds:
            source.drop(
                item.name,
                "too long",
                f"{span:.1f} s > {max_seconds:g} s: {item.origin}",
            )
        else:
            kept.append(item)
            seen.add(place)
    _require_short(source.items, kept, max_seconds)
    if not kept:
        raise UserError(f"no usable utterance{first_dropped(source.dropped)}")
    members = [
        Member(
            item.split,
            item.speaker,
            "" if item.start is None else item.audio,
            ctc_text(item.text, options.language),
            _seconds(item) or UNKNOWN_SECONDS,
        )
        for item in kept
    ]
    try:
        sets, rule = split_members(members, dev_share, test_share)
    except ValueError as error:
        raise UserError(
            f"{error} ({len(kept)} utterances){first_dropped(source.dropped)}"
        ) from None
    missing = {"train", "dev", "test"} - set(sets)
    if missing:
        raise UserError(
            f"no utterance for {' and '.join(sorted(missing))}; give data for it, or a "
            "share above 0 (--dev_share, --test_share)"
        )
    utterances = [
        Utterance(
            key,
            set_,
            item.speaker,
            item.text,
            clean_text(item.text),
            _seconds(item),
            item.ctc_error,
        )
        for (key, _), set_, item in zip(make_ids(kept), sets, kept, strict=True)
    ]
    findings = _check_dropped(source.dropped)
    findings += check_utterances(utterances, options.language)
    if options.target_language:
        bare = [
            (one.id, item.origin)
            for one, item in zip(utterances, kept, strict=True)
            if not clean_text(item.translation)
        ]
        if len(bare) == len(kept):
            target = options.target_language
            raise UserError(
                f"--tgt_lang {target}: no utterance has a translation; add a column "
                f"translation, or files such as x.{target}.txt"
            )
        if bare:
            advice = "used for recognition only"
            findings.append(Finding("no translation", advice, bare))
    return Corpus(utterances, kept, source.dropped, findings, [*source.notes, rule])


def make_ids(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Return a unique id ``<speaker>-<name>``, and the speaker, for each item.

    An unknown speaker is the recording. Speakers have no characters that sort before
    the hyphen, so that ids and speakers have the same order. Names that become equal
    get a digest of the original.
    """
    speakers = {item.speaker: _part(item.speaker) for item in items if item.speaker}
    counts = Counter(speakers.values())
    pairs, seen = [], set()
    for item in items:
        name = _part(item.name.removeprefix(item.speaker) or item.name)
        if item.speaker:
            speaker = speakers[item.speaker]
            if counts[speaker] > 1:
                speaker = f"{speaker}_{_digest(item.speaker)}"
            key = f"{speaker}-{name}"
        elif item.start is not None:
            speaker = _recording_part(item.audio)
            key = f"{speaker}-{name}"
        else:
            speaker, key = "", name
        if key in seen:
            key += f"_{_digest(f'{item.audio} {item.start} {item.text}')}"
        while key in seen:
            key += "x"
        seen.add(key)
        pairs.append((key, speaker or key))
    return pairs


def write_sets(output: Path, corpus: Corpus, options: ReadOptions) -> None:
    """Write the data dirs, all or none."""
    rows = list(zip(corpus.utterances, corpus.items, strict=True))
    speakers = dict(make_ids(corpus.items))
    with ExitStack() as stack:
        for name in SETS:
            directory = output / name
            new = stack.enter_context(atomic_directory(directory, DATA_DIR))
            tables: dict[str, dict[str, str]] = {
                table: {} for table in ("wav.scp", "text", "utt2spk", "utt2lang")
            }
            own = [(one, item) for one, item in rows if one.set == name]
            cut = any(item.start is not None for _, item in own)
            if cut:
                tables["segments"] = {}
            for one, item in own:
                tables["text"][one.id] = one.text
                tables["utt2spk"][one.id] = speakers[one.id]
                tables["utt2lang"][one.id] = options.language
                recording = _recording_part(item.audio) if cut else one.id
                tables["wav.scp"][recording] = item.audio
                if cut:
                    start, end = item.start or 0.0, item.end or item.seconds or 0.0
                    tables["segments"][one.id] = f"{recording} {start:.3f} {end:.3f}"
                translation = clean_text(item.translation)
                if options.target_language and translation:
                    table = f"text.{options.target_language}"
                    tables.setdefault(table, {})[one.id] = translation
            dropped = corpus.dropped if name == "train" else []
            fill_data_dir(new, tables, dropped)


def _require_language(source: Source, options: ReadOptions) -> None:
    """Raise UserError if the input says that it is in another language."""
    languages = Counter(item.language for item in source.items if item.language)
    if languages and options.language not in languages:
        found = ", ".join(sorted(languages))
        raise UserError(
            f"--lang {options.language}: the data is in {found}; give --lang "
            f"{languages.most_common(1)[0][0]}"
        )


def _require_short(
    items: Sequence[Item], kept: Sequence[Item], max_seconds: float
) -> None:
    """Raise UserError if much of the speech is in recordings that are too long."""
    longs = [item for item in items if too_long(item, max_seconds)]
    seconds = sum(item.seconds or 0.0 for item in longs)
    rest = sum(_seconds(item) or 0.0 for item in kept)
    if longs and seconds > _TOO_MUCH_LEFT_OUT * (seconds + rest):
        first = longs[0]
        raise UserError(
            f"{first.audio}: {first.seconds or 0:.0f} s with one transcript, as in "
            f"{len(longs)} recordings of more than {max_seconds:g} s; a training needs "
            "shorter utterances: give subtitles (.srt or .vtt) in place of the .txt, "
            "which are cut by their times, or --align_model MODEL_DIR, a trained model "
            "with a CTC branch that aligns the transcript"
        )


def _check_dropped(dropped: Sequence[Dropped]) -> list[Finding]:
    """Return the warning about utterances that are too long."""
    entries = [(e.id, e.detail) for e in dropped if e.reason == "too long"]
    advice = "left out; cut them, or give subtitles or --align_model"
    return [Finding("too long", advice, entries)] if entries else []


def _seconds(item: Item) -> float | None:
    """Return the length of an utterance."""
    if item.start is None and item.end is None:
        return item.seconds
    end = item.end if item.end is not None else item.seconds
    return None if end is None else end - (item.start or 0.0)


def _part(name: str) -> str:
    """Return a name as a part of an id: letters, digits, ``_`` and ``.``."""
    clean = _NOT_IN_ID.sub("_", name).strip("._") or "x"
    if len(clean) > _LONGEST_NAME:
        clean = f"{clean[: _LONGEST_NAME - 13]}_{_digest(name)}"
    return clean


def _recording_part(audio: str) -> str:
    """Return the part of an id for a recording, unique for its path."""
    return f"{_part(Path(audio).stem)}_{_digest(audio)[:6]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
