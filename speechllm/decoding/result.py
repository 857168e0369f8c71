"""What a model makes of one utterance or one recording."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """A word of the text and where it was heard.

    Attributes:
        text: as it stands in the answer, punctuation included.
        start, end: seconds from the beginning of the recording.
        confidence: probability that the word is right, from 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Passage:
    """What was said between two times, in seconds from the recording's beginning."""

    start: float
    end: float
    text: str


@dataclass
class Result:
    """What the model makes of one utterance, or of one recording.

    Attributes:
        text: the answer; of ``asr_st`` the translation.
        tokens: its LLM tokens, as text.
        score: what the search ranked it by.
        ctc_text: what the CTC branch alone heard, or None.
        nbest: (text, score) of each hypothesis, best first.
        transcript: of ``asr_st`` the transcript beside the translation, else None.
        flags: what is odd about the answer, such as ``"malformed"`` (an ``asr_st``
            answer without its separator) or what the guard found.
        unguarded: the text before the guard changed it, or None.
        words: the words with their times, where they were asked for.
        confidence: probability that the text is right word by word, on average, or
            None where it was not asked for.
        passages: of a recording, the parts that it was decoded in, else None.
    """

    text: str
    tokens: list[str]
    score: float
    ctc_text: str | None = None
    nbest: list[tuple[str, float]] = field(default_factory=list)
    transcript: str | None = None
    flags: list[str] = field(default_factory=list)
    unguarded: str | None = None
    words: list[Word] | None = None
    confidence: float | None = None
    passages: list[Passage] | None = None

    def entry(self) -> dict:
        """The result as JSON knows it; what was not asked for is left out."""
        line: dict = {
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
