"""Results of one utterance or one recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word of the text with its time and confidence.

    Attributes:
        text: the word as in the text, punctuation included.
        start, end: seconds from the beginning of the recording.
        confidence: probability that the word is correct, from 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """The text between two times, in seconds from the beginning of the recording."""

    start: float
    end: float
    text: str


@dataclass
class Result:
    """The result of one utterance, or of one recording.

    Attributes:
        text: the output; for ``asr_st`` the translation.
        tokens: its LLM tokens, as text.
        score: of the search: weighted log probability of the text by the models, with
            ``penalty`` and the bonus of hotwords.
        ctc_text: CTC transcript, or None without a trained CTC branch.
        nbest: (text, score) of each hypothesis, best first.
        transcript: transcript of ``asr_st``, else None.
        flags: warnings about the text, such as ``"truncated"`` (it reached its maximum
            length), ``"malformed"`` (an ``asr_st`` output without its separator, or
            cut off) and those of the guard.
        unguarded: the text before the guard changed it, or None.
        unguarded_transcript: the same of ``transcript``, for one utterance.
        words: the words with their times, if requested.
        confidence: mean confidence of the words, or None if it was not requested.
        passages: segments in which a recording was decoded, else None.
    """

    text: str
    tokens: list[str]
    score: float
    ctc_text: str | None = None
    nbest: list[tuple[str, float]] = field(default_factory=list)
    transcript: str | None = None
    flags: list[str] = field(default_factory=list)
    unguarded: str | None = None
    unguarded_transcript: str | None = None
    words: list[Word] | None = None
    confidence: float | None = None
    passages: list[Segment] | None = None

    def entry(self) -> dict[str, Any]:
        """Return the result for JSON, without what was not requested."""
        line: dict[str, Any] = {
            "text": " ".join(self.text.split()),
            "score": round(self.score, 4),
            "tokens": self.tokens,
            "ctc_text": self.ctc_text,
            "nbest": [[text, round(score, 4)] for text, score in self.nbest],
        }
        if self.transcript is not None:
            line["transcript"] = " ".join(self.transcript.split())
        if self.flags:
            line["flags"] = self.flags
        if self.unguarded is not None:
            line["unguarded"] = " ".join(self.unguarded.split())
        if self.confidence is not None:
            line["confidence"] = round(self.confidence, 4)
        if self.words is not None:
            line["words"] = [
                [w.text, round(w.start, 3), round(w.end, 3), round(w.confidence, 4)]
                for w in self.words
            ]
        if self.passages is not None:
            line["passages"] = [
                [round(p.start, 3), round(p.end, 3), " ".join(p.text.split())]
                for p in self.passages
            ]
        return line
