"""Small LibriSpeech corpora in the format of the release, for tests."""

from __future__ import annotations

import tarfile
from pathlib import Path

import soundfile

from speechllm.corpora._espeak import Voice, speak

# part -> chapter -> texts of its utterances
CORPUS = {
    "train-clean-100": {
        "19/198": ["NORTHANGER ABBEY", "THIS LITTLE WORK WAS FINISHED"],
        "103/1240": ["MISSUS LYNDE'S SURPRISE"],
    },
    "train-clean-360": {"14/208": ["IT WAS A LARGE ROOM"]},
    "train-other-500": {"20/205": ["THE SEA WAS CALM"]},
    "dev-clean": {"84/121123": ["GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES"]},
    "dev-other": {"116/288045": ["AS I APPROACHED THE CITY"]},
    "test-clean": {"61/70968": ["HE BEGAN A CONFUSED COMPLAINT"]},
    "test-other": {"367/130732": ["LOBSTERS AND LOBSTERS"]},
}


def write_corpus(root: Path, parts: dict = CORPUS) -> Path:
    """Write parts below ``root/LibriSpeech``; return ``root``."""
    for part, chapters in parts.items():
        for chapter, texts in chapters.items():
            folder = root / "LibriSpeech" / part / chapter
            folder.mkdir(parents=True)
            prefix = chapter.replace("/", "-")
            lines = []
            for number, text in enumerate(texts):
                key = f"{prefix}-{number:04d}"
                lines.append(f"{key} {text}\n")
                speech = speak(text.lower(), Voice("en", words_per_minute=220))
                soundfile.write(folder / f"{key}.flac", speech, 16000)
            (folder / f"{prefix}.trans.txt").write_text("".join(lines))
    return root


def pack(root: Path, part: str, archive: Path) -> Path:
    """Write the archive of a part, with the folder LibriSpeech as in the release."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "LibriSpeech" / part, f"LibriSpeech/{part}")
    return archive
