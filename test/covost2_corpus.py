"""Small CoVoST 2 corpora in the format of the release, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

ANNA, BEN, CEM = "a" * 128, "b" * 128, "c" * 128
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\n"

# (client, clip, sentence as in the file)
VALIDATED = {
    "en": [
        (BEN, "en_1", "When water is scarce, avoid wasting it."),
        (ANNA, "en_2", '"""We need money,"" the other figure said."'),
        (ANNA, "en_3", '"Left" and "right" are not the same.'),
        (ANNA, "en_4", "A soft\u00adhyphen,\u200b a\u00a0space and a \\\\ backslash."),
        (ANNA, "en_5", "Marked for removal."),
        (BEN, "en_6", "Its translation lost a letter."),
        (BEN, "en_7", "It was not translated."),
        (BEN, "en_8", ""),
        (BEN, "en_9", "Its clip is missing."),
        (BEN, "en_10", "It stands in two sets."),
        (BEN, "en_11", "It is in no set of the second version."),
        (BEN, "en_12", "Not translated at all."),
        (CEM, "en_20", 'It validates with a " mark.'),
        (CEM, "en_30", "It tests."),
        (CEM, "en_31", "It tests what was marked."),
    ],
    "fr": [
        (CEM, "fr_1", "Bonjour."),
        (CEM, "fr_2", "Ça va ?"),
        (CEM, "fr_3", "Au revoir."),
    ],
}
# (clip, translation as in the file, split)
TRANSLATIONS = {
    "en_de": [
        ("en_1", "Verschwende kein Wasser, wenn es knapp ist.", "train"),
        ("en_2", '"""Wir brauchen Geld"", sagte die andere Gestalt."', "train_covost"),
        ("en_3", '"Links" und „rechts“ sind nicht dasselbe.', "train"),
        ("en_4", 'Ein Backslash \\\\ und\ufeff ein \\"Zeichen\\".', "train"),
        ("en_5", "REMOVE", "train"),
        ("en_6", "Ihrer \ufffdbersetzung fehlt etwas.", "train"),
        ("en_7", "", "train"),
        ("en_8", "Ein leerer Satz.", "train"),
        ("en_9", "Der Clip fehlt.", "train"),
        ("en_10", "Er steht in zwei Mengen.", "train"),
        ("en_10", "Er steht in zwei Mengen.", "test"),
        ("en_11", "In keiner.", "test_covost"),
        ("en_13", "Nicht in validated.tsv.", "dev"),
        ("en_20", 'Ein " allein, und noch etwas.', "dev"),
        ("en_30", "Er prüft.", "test"),
        ("en_31", "REMOVE", "test"),
    ],
    "en_zh-CN": [
        ("en_1", "缺水时，避免浪费。", "train"),
        ("en_12", "根本没有翻译。", "train"),
        ("en_20", "验证。", "dev"),
        ("en_30", "测试。", "test"),
    ],
    "fr_en": [
        ("fr_1", "Hello.", "train"),
        ("fr_2", "How are you?", "dev"),
        ("fr_3", "Goodbye.", "test"),
    ],
}


def write_corpus(root: Path) -> Path:
    """Write the translations, and a Common Voice release that lacks a clip."""
    noise = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    for language, rows in VALIDATED.items():
        clips = root / language / "clips"
        clips.mkdir(parents=True)
        lines = [HEADER]
        for client, clip, sentence in rows:
            name = f"common_voice_{clip}.mp3"
            lines.append(f"{client}\t{name}\t{sentence}\t2\t0\t\t\t\n")
            if clip != "en_9":
                soundfile.write(clips / name, noise, 48000, format="MP3")
        (root / language / "validated.tsv").write_text("".join(lines), "utf-8")
    for direction, rows in TRANSLATIONS.items():
        lines = ["path\ttranslation\tsplit\n"]
        lines += [f"common_voice_{c}.mp3\t{t}\t{split}\n" for c, t, split in rows]
        path = root / f"covost_v2.{direction}.tsv"
        path.write_text("".join(lines), "utf-8")
    return root
