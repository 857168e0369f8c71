"""Small MuST-C corpora in the format of the release, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

SECONDS = {"ted_1": 10.0, "ted_12": 6.0, "ted_767": 5.0, "ted_5": 4.0, "ted_9": 4.0}

# set -> lines of (duration, offset, speaker, file)
CORPUS = {
    "train": [
        ("3.500000", "1.080000", "spk.12", "ted_12.wav"),
        ("2.000000", "0.000000", "spk.1", "ted_1.wav"),
        ("1.250000", "2.333333", "spk.1", "ted_1.wav"),
        ("1.250000", "2.333333", "spk.1", "ted_1.wav"),  # listed twice
        ("0.000000", "5.000000", "spk.1", "ted_1.wav"),  # empty
        ("3.000000", "9.000000", "spk.1", "ted_1.wav"),  # ends 2 s past the end
        ("1.300000", "9.000000", "spk.1", "ted_1.wav"),  # ends 0.3 s past the end
        ("1.000000", "6.000000", "spk.1", "ted_1.wav"),  # applause
        ("1.000000", "7.000000", "spk.1", "ted_1.wav"),  # no transcript
        ("1.000000", "0.000000", "spk.3", "ted_3.wav"),  # no such file
        ("1.000000", "0.000000", "spk.5", "ted_5.wav"),  # a talk of tst-COMMON
    ],
    "dev": [("5.000000", "0.000000", "spk.767", "ted_767.wav")],
    "tst-COMMON": [("4.000000", "0.000000", "spk.5", "ted_5.wav")],
    "tst-HE": [("2.000000", "1.000000", "spk.9", "ted_9.wav")],
}
ENGLISH = {
    "train": [
        "Thank you so much, Chris.",
        "And it's\u00a0truly\u200b a great honor\r to come\u2028here.",
        'I said, "Yes." (Laughter)',
        'I said, "Yes." (Laughter)',
        "Nothing.",
        "This runs over.",
        "And this hardly.",
        "(Applause) ♫",
        "",
        "Nobody hears this.",
        "This tests.",
    ],
    "dev": ["Back in New York, I am the head of development."],
    "tst-COMMON": ["(Applause)"],
    "tst-HE": ["The end."],
}
GERMAN = {
    "train": [
        "Vielen Dank, Chris.",
        "Es ist mir wirklich eine Ehre.",
        "Ich sagte: »Ja.« (Lachen)",
        "Ich sagte: »Ja.« (Lachen)",
        "Nichts.",
        "Das ist zu lang.",
        "Und das kaum.",
        "(Applaus) ♫",
        "Etwas.",
        "Das hört niemand.",
        "Das ist ein Test.",
    ],
    "dev": ["In New York bin ich Leiter."],
    "tst-COMMON": ["(Applaus)"],
    "tst-HE": [""],
}


def write_language(root: Path, language: str, corpus, english, translated) -> None:
    """Write en-<language> in the layout of version 1 (its dev set as in version 2)."""
    for name, lines in corpus.items():
        folder = root / f"en-{language}" / "data" / name
        for part in ("wav", "txt"):
            (folder / part).mkdir(parents=True)
        listing = []
        for duration, offset, speaker, wav in lines:
            counts = ", rW: 9, uW: 0" if name == "dev" else ""
            listing.append(
                f"- {{duration: {duration}, offset: {offset}{counts}, "
                f"speaker_id: {speaker}, wav: {wav}}}\n"
            )
            stem = Path(wav).stem
            if stem in SECONDS:
                samples = np.full(int(16000 * SECONDS[stem]), 0.1, np.float32)
                soundfile.write(folder / "wav" / wav, samples, 16000)
        (folder / "txt" / f"{name}.yaml").write_text("".join(listing))
        for code, texts in (("en", english[name]), (language, translated[name])):
            content = "".join(f"{text}\n" for text in texts)
            (folder / "txt" / f"{name}.{code}").write_bytes(content.encode())
