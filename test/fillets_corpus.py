"""A small corpus in the layout of Fish Fillets, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

LEVELS = ("airplane", "broom", "cave", "dump", "elk", "floppy", "gods", "hole")
WORDS = {  # language -> eight numbers
    "cs": "jedna dva tři čtyři pět šest sedm osm",
    "nl": "een twee drie vier vijf zes zeven acht",
    "en": "one two three four five six seven eight",
    "de": "eins zwei drei vier fünf sechs sieben acht",
}


def write_corpus(root: Path, keys: int = 4, seconds: float = 0.6) -> Path:
    """Write eight levels, each with ``keys`` sentences in Czech and Dutch.

    The German texts of the first level are missing, as in the corpus.
    """
    words = {language: text.split() for language, text in WORDS.items()}
    for number, level in enumerate(LEVELS):
        for language in ("cs", "nl", "de"):
            if language == "de" and number == 0:
                continue
            lines = []
            for key in range(keys):
                english = f"{words['en'][number]} fish, {words['en'][key]}."
                text = f"{words[language][number]} ryby, {words[language][key]}."
                font = "small" if key % 2 else "big"
                lines += dialog(f"{level[:3]}-{key}", f"font_{font}", english, text)
            write_dialogs(root, level, language, "".join(lines))
        for language in ("cs", "nl"):
            for key in range(keys):
                write_sound(root, level, language, f"{level[:3]}-{key}", seconds)
    return root


def dialog(key: str, font: str, english: str, text: str) -> list[str]:
    return [
        f'dialogId("{key}", "{font}", "{english}")\n',
        f'dialogStr("{text}")\n\n',
    ]


def write_dialogs(
    root: Path, level: str, language: str, content: str, part: str = ""
) -> Path:
    """Write a file of dialogues, such as ``script/cave/dialogs_cs.lua``."""
    folder = root / "script" / level
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}dialogs_{language}.lua"
    path.write_text(content, "utf-8")
    return path


def write_sound(
    root: Path, level: str, language: str, key: str, seconds: float = 0.6
) -> Path:
    """Write a recording of noise, Ogg Vorbis at 22.05 kHz."""
    folder = root / "sound" / level / language
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(key)).normal(0, 0.1, int(22050 * seconds))
    path = folder / f"{key}.ogg"
    soundfile.write(path, noise.astype(np.float32), 22050)
    return path
