"""Statistics of data dirs: counts, dropped utterances, plot."""

from __future__ import annotations

import pytest

from speechllm.bin.data_dir import main
from speechllm.data.data_dir import subset_data_dir, write_data_dir
from speechllm.data.kaldi_table import Dropped
from speechllm.data.statistics import describe_sets, statistics, statistics_markdown

TABLES = {
    "wav.scp": {"s1-a": "/a.wav", "s1-b": "/b.wav", "s2-c": "/c.wav"},
    "utt2spk": {"s1-a": "s1", "s1-b": "s1", "s2-c": "s2"},
    "utt2lang": {"s1-a": "en", "s1-b": "en", "s2-c": "ja"},
    "utt2num_samples": {"s1-a": "16000", "s1-b": "56000", "s2-c": "32000"},
    "text": {"s1-a": "Good day", "s1-b": "A bee", "s2-c": "こんにちは 世界"},
    "text.de": {"s1-a": "Guten Tag, Welt"},
    "text.en": {"s2-c": "Hello"},
}
DROPPED = [
    Dropped("s1-a", "prepare_data", "empty translation"),  # still in the set
    Dropped("s1-x", "prepare_data", "no audio file"),
    Dropped("s1-x", "filter", "too long"),  # counted once
    Dropped("s1-y", "filter", "too long"),
]
TABLE = """\
| set | language | utterances | hours | speakers | mean s | max s | characters \
| tokens | dropped |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| train | en | 2 | 0.00 | 1 | 2.25 | 3.50 | 13 | 4 |  |
| train | ja | 1 | 0.00 | 1 | 2.00 | 2.00 | 8 | 8 |  |
| train | all | 3 | 0.00 | 2 | 2.17 | 3.50 | 21 | 6 | 2 (40.00%) |
| train | → de | 1 |  |  |  |  | 15 | 3 |  |
| train | → en | 1 |  |  |  |  | 5 | 1 |  |

Left out, and why:

- train: 2 too long
"""


@pytest.fixture
def train(tmp_path):
    write_data_dir(tmp_path / "train", TABLES, DROPPED)
    return tmp_path / "train"


def test_table_matches_manual_counts(train):
    found = statistics_markdown(describe_sets([train]))
    assert found == TABLE


def test_lengths_are_counted_in_whole_seconds(train):
    assert statistics(train)[-1]["lengths"] == {1: 1, 3: 1, 2: 1}


def test_set_with_one_language_has_one_row(train, tmp_path):
    subset_data_dir(train, tmp_path / "en", ids=["s1-a", "s1-b"])
    lines = statistics_markdown(describe_sets([tmp_path / "en"])).splitlines()
    assert lines[2].startswith("| en | en | 2 |") and lines[2].endswith("(50.00%) |")
    assert lines[3].startswith("| en | → de |")


def test_command_line_writes_table_and_plot(train, tmp_path, capsys):
    write_data_dir(tmp_path / "dev", TABLES)  # nothing dropped
    inputs = ["--input", str(train), str(tmp_path / "dev")]
    main(["statistics", *inputs, "--output", str(tmp_path / "out/STATISTICS")])
    printed = capsys.readouterr().out
    written = (tmp_path / "out/STATISTICS.md").read_text("utf-8")
    assert written.startswith(printed) and "(STATISTICS.png)" in written
    picture = (tmp_path / "out/STATISTICS.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


def test_table_is_only_printed_without_output(train, tmp_path, capsys):
    main(["statistics", "--input", str(train)])
    assert "| train | ja | 1 |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("speakers", ["ssttu", "stsut"])
def test_speakers_are_counted_in_any_order(tmp_path, speakers):
    """Also one who speaks two languages."""
    names = [f"{number}" for number in range(5)]
    write_data_dir(
        tmp_path,
        {
            "wav.scp": dict.fromkeys(names, "a.wav"),
            "utt2spk": dict(zip(names, speakers)),
            "utt2lang": dict(zip(names, ["de", "en", "de", "en", "en"])),
            "utt2dur": dict.fromkeys(names, "1"),
            "text": dict.fromkeys(names, "a"),
        },
    )
    counts = {row["language"]: row["speakers"] for row in statistics(tmp_path)}
    spoken = {"de": {speakers[0], speakers[2]}, "en": set(speakers[1] + speakers[3:])}
    expected = {language: len(found) for language, found in spoken.items()}
    assert counts == expected | {"*": 3}
