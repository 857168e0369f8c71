"""Joining of the results of a recording's segments into one result.

Segments that were cut without a pause overlap; the text of the overlap is kept once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise

from speechllm.audio.segmentation import SpeechSegment
from speechllm.decoding.result import Result, Segment, Word
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES

NO_SPEECH = "no speech"  # flag of a recording


def join(
    pieces: Sequence[tuple[SpeechSegment, Result]], source: str, target: str
) -> Result:
    """Join the results of a recording's segments into one result.

    Texts of overlapping segments are merged by word times if there are any, else at
    the longest common run of words.

    Args:
        pieces: segments in order with their results.
        source, target: language codes of the speech and of the text.
    """
    if not pieces:
        return Result("", [], 0.0, flags=[NO_SPEECH], passages=[])
    parts = [shift_times(result, segment) for segment, result in pieces]
    merge_overlaps(parts, source, target)
    results = [part.result for part in parts]
    passages = [
        Segment(part.start, part.end, part.result.text)
        for part in parts
        if part.result.text.strip()
    ]
    if len(parts) == 1:
        return replace(results[0], passages=passages)
    text = join_texts([r.text for r in results], target) or ""
    score = sum(r.score for r in results)
    unguarded = None
    if any(r.unguarded is not None for r in results):
        before = [r.text if r.unguarded is None else r.unguarded for r in results]
        unguarded = join_texts(before, target)
    words = None
    if any(r.words is not None for r in results):
        words = remove_overlaps([word for r in results for word in r.words or ()])
    weighted = [
        (r.confidence, len(r.text)) for r in results if r.confidence is not None
    ]
    characters = sum(length for _, length in weighted)
    return Result(
        text=text,
        tokens=[token for r in results for token in r.tokens],
        score=score,
        ctc_text=join_texts([r.ctc_text for r in results], source),
        nbest=[(text, score)],
        transcript=join_texts([r.transcript for r in results], source),
        flags=sorted({flag for r in results for flag in r.flags}),
        unguarded=unguarded,
        words=words,
        confidence=(
            sum(c * n for c, n in weighted) / characters if characters else None
        ),
        passages=passages,
    )


def join_texts(texts: Sequence[str | None], language: str) -> str | None:
    """Join texts, with spaces in languages that have them; None if all are None."""
    if all(text is None for text in texts):
        return None
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    return gap.join(" ".join(text.split()) for text in texts if text)


@dataclass
class _Part:
    """A segment's result with times in the recording, changed by merging."""

    start: float
    end: float
    result: Result


def shift_times(result: Result, segment: SpeechSegment) -> _Part:
    """Convert a result's times to seconds from the beginning of the recording."""
    if result.words is not None:
        words = [
            replace(w, start=w.start + segment.start, end=w.end + segment.start)
            for w in result.words
        ]
        result = replace(result, words=words)
    return _Part(segment.start, segment.end, result)


def merge_overlaps(parts: Sequence[_Part], source: str, target: str) -> None:
    """Remove duplicate text of adjacent segments that overlap, in place."""
    for left, right in pairwise(parts):
        shared = left.end - right.start
        if shared <= 0:
            continue
        shares = shared / (left.end - left.start), shared / (right.end - right.start)
        middle = right.start + shared / 2
        one, two = left.result, right.result
        changes: tuple[dict, dict] = {}, {}
        for name, language in [
            ("text", target),
            ("ctc_text", source),
            ("transcript", source),
            ("unguarded", target),
        ]:
            texts = getattr(one, name), getattr(two, name)
            if None not in texts:
                merged = merge_texts(*texts, shares, language)
                changes[0][name], changes[1][name] = merged
        if one.words is not None and two.words is not None:
            kept = merge_words(one.words, two.words, middle)
            # the words of asr_st are those of the transcript
            joint = one.transcript is not None and two.transcript is not None
            name = "transcript" if joint else "text"
            gap = "" if source in LANGUAGES_WITHOUT_SPACES else " "
            for change, words in zip(changes, kept):
                change |= {"words": words, name: gap.join(w.text for w in words)}
        left.result = replace(one, **changes[0])
        right.result = replace(two, **changes[1])
        left.end = right.start = middle


def merge_words(
    left: Sequence[Word], right: Sequence[Word], middle: float
) -> tuple[list[Word], list[Word]]:
    """Split the words of an overlap at its middle.

    A word across the middle can be on different sides in the two segments, and beyond
    the middle in both; it is kept once.

    Args:
        left, right: words of the two segments, with times in the recording.
        middle: seconds from the beginning of the recording.

    Returns:
        The remaining words of each segment.
    """
    left, cut_left = _divide(left, middle)
    cut_right, right = _divide(right, middle)
    around = [*cut_right[-1:], *right[:1]]
    if cut_left and cut_right and _same_word(cut_left[0], around) is cut_right[-1]:
        left.append(cut_left[0])
    if left and right and _same_word(left[-1], around) is right[0]:
        right = right[1:]
    return left, right


def _divide(words: Sequence[Word], middle: float) -> tuple[list[Word], list[Word]]:
    """Return the words whose centre is before the middle, and the others."""
    is_left = [w.start + w.end < 2 * middle for w in words]
    return (
        [w for w, before in zip(words, is_left) if before],
        [w for w, before in zip(words, is_left) if not before],
    )


def _same_word(word: Word, others: Sequence[Word]) -> Word | None:
    """Return the word that overlaps ``word`` most and has its text, or None."""

    def overlap(other: Word) -> float:
        return min(word.end, other.end) - max(word.start, other.start)

    text = _normalise(word.text)
    same = [w for w in others if overlap(w) > 0 and _normalise(w.text) == text]
    return max(same, key=overlap, default=None)


def remove_overlaps(words: Sequence[Word]) -> list[Word]:
    """Return the words with times that do not overlap and never go backwards.

    Two adjacent words that overlap meet in the middle of the overlap.
    """
    found: list[Word] = []
    for word in words:
        start = word.start
        if found and start < found[-1].end:
            last = found[-1]
            start = (max(start, last.start) + min(word.end, last.end)) / 2
            start = max(start, last.start)
            found[-1] = replace(last, end=start)
        found.append(replace(word, start=start, end=max(word.end, start)))
    return found


def merge_texts(
    left: str, right: str, shares: tuple[float, float], language: str
) -> tuple[str, str]:
    """Cut the texts of two overlapping segments so that nothing is repeated.

    The cut follows the longest common run of words (characters in languages without
    spaces) of the end of ``left`` and the beginning of ``right``. Without one, each
    text loses half of the words expected in the overlap.

    Args:
        left, right: texts of the two segments.
        shares: fraction of each segment in the overlap, from 0 to 1.
        language: language code of the texts.

    Returns:
        The remaining text of each segment.
    """
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    left_words, right_words = (
        text.split() if gap else list(text) for text in (left, right)
    )
    tail, head = (
        min(round(len(words) * share * 1.5) + 2, len(words))
        for words, share in zip((left_words, right_words), shares)
    )
    begin = len(left_words) - tail
    match = SequenceMatcher(
        None,
        [_normalise(w) for w in left_words],
        [_normalise(w) for w in right_words],
        autojunk=False,
    ).find_longest_match(begin, len(left_words), 0, head)
    if match.size:
        left_end, right_start = match.a + match.size, match.b + match.size
    else:
        left_end = len(left_words) - round(len(left_words) * shares[0] / 2)
        right_start = round(len(right_words) * shares[1] / 2)
    return gap.join(left_words[:left_end]), gap.join(right_words[right_start:])


def _normalise(word: str) -> str:
    """Return a word without case and surrounding punctuation, for comparison."""
    return word.strip(".,;:!?…¡¿\"'“”‘’«»()[]、。").casefold()
