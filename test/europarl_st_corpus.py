"""Small Europarl-ST corpora in the layout of release 1.1, for tests."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

SECONDS = 6.0
SPEAKERS = {
    "3-243": "Jean-Marie Cavada_4330",
    "4-018": "Ann Other_17",
    "9-001": "B C_9",
}
#: set -> segments as (speech without its language, start, end, transcript, translation)
CORPUS = {
    "train": [
        (
            "3-243",
            "0.00",
            "2.50",
            "Madam President, thank you.",
            "Frau Präsidentin, danke.",
        ),
        ("3-243", "2.50", "4.00", "We  agree.", "Wir\u200b stimmen zu."),
    ],
    "train-noisy": [("3-243", "4.00", "5.75", "Noisy words.", "Laute Wörter.")],
    "dev": [("4-018", "1.00", "3.25", "This is the dev set.", "Das ist das Dev-Set.")],
    "test": [("9-001", "0.00", "3.00", "I have 3 questions.", "Ich habe 3 Fragen.")],
}


def write_pair(
    root: Path,
    source: str = "en",
    target: str = "de",
    corpus: dict[str, list[tuple[str, ...]]] = CORPUS,
    suffix: str = ".m4a",
) -> Path:
    """Write the lists, texts and speeches of a pair below ``root/v1.1``."""
    folder = root / "v1.1" / source
    (folder / "audios").mkdir(parents=True, exist_ok=True)
    for name, rows in corpus.items():
        place = folder / target / name
        place.mkdir(parents=True)
        speeches = dict.fromkeys(f"{source}.20080924.{row[0]}" for row in rows)
        speakers = [SPEAKERS.get(speech.split(".")[-1], "") for speech in speeches]
        lines = {
            "segments.lst": [f"{source}.20080924.{' '.join(row[:3])}" for row in rows],
            f"segments.{source}": [row[3] for row in rows],
            f"segments.{target}": [row[4] for row in rows],
            "speeches.lst": list(speeches),
            "speakers.lst": speakers,
        }
        for file, content in lines.items():
            text = "".join(f"{line}\n" for line in content)
            (place / file).write_text(text, "utf-8", newline="\n")
        for speech in speeches:
            path = folder / "audios" / f"{speech}{suffix}"
            if not path.exists():
                write_audio(path)
    return root


def write_audio(path: Path, seconds: float = SECONDS, rate: int = 44100) -> None:
    """Write a recording of noise, AAC in an MPEG-4 container or WAV."""
    noise = np.random.default_rng(1).normal(0, 3000, (1, int(rate * seconds)))
    codec = "pcm_s16le" if path.suffix == ".wav" else "aac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = noise.clip(-32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
