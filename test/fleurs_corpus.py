"""Small FLEURS corpora in the format of the dataset's repository, for tests."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import soundfile

from speechllm.corpora._espeak import Voice, speak

# language -> split -> (sentence, file, text as written); sentence 3 has two readings
CORPUS = {
    "en_us": {
        "train": [
            (1, "11", "Water is wet."),
            (2, "12", 'He said "yes" twice.'),
            (3, "13", "Good morning, all."),
            (3, "14", "Good morning, all."),
        ],
        "dev": [(10, "21", "The bridge is long.")],
        "test": [(20, "31", "It rains."), (21, "32", "It snows.")],
    },
    "de_de": {
        "train": [(1, "41", "Wasser ist nass."), (3, "42", "Guten Morgen, Leute.")],
        "dev": [(10, "51", "Die Brücke ist lang.")],
        "test": [(20, "61", "Es regnet."), (21, "62", "Es schneit.")],
    },
    "ja_jp": {
        "train": [(1, "71", "水は濡れている。"), (3, "72", "おはようございます。")],
        "dev": [(10, "73", "橋は長い。")],
        "test": [(20, "74", "雨が降る。")],
    },
}


def row(sentence: int, file: str, text: str) -> str:
    """Return a line of a table."""
    plain = "".join(c for c in text.lower() if c.isalnum() or c == " ")
    letters = " ".join(plain.replace(" ", "|")) + " |"
    fields = (str(sentence), f"{file}.wav", text, plain, letters, "16000", "FEMALE")
    return "\t".join(fields) + "\n"


def write_corpus(
    root: Path, languages: dict = CORPUS, packed: bool = True, spoken: bool = True
) -> Path:
    """Write tables and archives below ``root/data``.

    Args:
        packed: write ``audio/<split>.tar.gz``, not the folders.
        spoken: with speech, not noise.
    """
    noise = np.random.default_rng(2).normal(0, 0.1, 8000)
    for code, splits in languages.items():
        folder = root / "data" / code
        for split, rows in splits.items():
            (folder / "audio" / split).mkdir(parents=True)
            lines = [row(*one) for one in rows]
            (folder / f"{split}.tsv").write_text("".join(lines), "utf-8")
            for _, file, text in rows:
                voice = Voice(code.split("_")[0], words_per_minute=220)
                audio = speak(text, voice) if spoken else noise
                path = folder / "audio" / split / f"{file}.wav"
                soundfile.write(path, audio, 16000, subtype="FLOAT")
            if packed:
                pack(folder / "audio" / split)
    return root


def pack(folder: Path) -> Path:
    """Replace a split's folder by its archive."""
    archive = folder.parent / f"{folder.name}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{folder.name}/{path.name}")
            path.unlink()
    folder.rmdir()
    return archive
