"""LibriSpeech in the format of the release: sets, counts, downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from file_server import serve
from librispeech_corpus import CORPUS, pack, write_corpus

from speechllm.bin import prepare_data
from speechllm.corpora import librispeech
from speechllm.corpora.librispeech import (
    PARTS,
    Part,
    download_librispeech,
    prepare_librispeech,
)
from speechllm.data.kaldi_table import iterate_table, read_dropped
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("librispeech"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect the numbers of utterances of the small corpus."""
    for part, chapters in CORPUS.items():
        count = sum(map(len, chapters.values()))
        monkeypatch.setitem(PARTS, part, PARTS[part]._replace(utterances=count))


def test_the_release_has_the_known_numbers() -> None:
    """The training sets of ESPnet and Kaldi: 281,241 and 132,553 utterances."""
    sizes = {
        name: sum(PARTS[part].utterances for part in parts)
        for name, parts in librispeech._sets("train_960").items()
    }
    assert sizes == {
        "train_960": 281241,
        "dev": 5567,
        "dev_clean": 2703,
        "dev_other": 2864,
        "test_clean": 2620,
        "test_other": 2939,
    }
    clean = librispeech._sets("train_clean_460")["train_clean_460"]
    assert sum(PARTS[part].utterances for part in clean) == 132553


@pytest.mark.parametrize("given", [".", "LibriSpeech"])
def test_all_sets_are_written(
    corpus: Path, tmp_path: Path, small: None, given: str
) -> None:
    results = prepare_librispeech(corpus / given, tmp_path)
    counts = {name: count for name, (count, _) in results.items()}
    assert counts == {
        "train_960": 5,
        "dev": 3,
        "dev_clean": 2,
        "dev_other": 1,
        "test_clean": 1,
        "test_other": 1,
    }
    for name in counts:
        assert validate_data_dir(tmp_path / name) == []
    train = tmp_path / "train_960"
    assert dict(iterate_table(train / "text")) == {
        "103-1240-0000": "MISSUS LYNDE'S SURPRISE",
        "14-208-0000": "IT WAS A LARGE ROOM",
        "19-198-0000": "NORTHANGER ABBEY",
        "19-198-0001": "THIS LITTLE WORK WAS FINISHED",
        "20-205-0000": "THE SEA WAS CALM",
    }
    assert dict(iterate_table(train / "utt2spk"))["19-198-0001"] == "19"
    assert set(dict(iterate_table(train / "utt2lang")).values()) == {"en"}
    audio = corpus / "LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac"
    assert dict(iterate_table(train / "wav.scp"))["103-1240-0000"] == str(audio)


@pytest.mark.parametrize(
    ("train_set", "count"), [("train_clean_100", 3), ("train_clean_460", 4)]
)
def test_smaller_training_sets_need_their_parts_only(
    tmp_path: Path, small: None, train_set: str, count: int
) -> None:
    absent = {"train_clean_100": 2, "train_clean_460": 1}[train_set]
    names = [part for part in CORPUS if not part.startswith("train")]
    names += list(CORPUS)[: 3 - absent]
    root = write_corpus(tmp_path / "corpus", {name: CORPUS[name] for name in names})
    results = prepare_librispeech(root, tmp_path / "data", train_set)
    assert results[train_set] == (count, [])
    with pytest.raises(
        UserError, match=r"LibriSpeech/train-\S+: not found; give the folder"
    ):
        prepare_librispeech(root, tmp_path / "data")


def test_an_incomplete_part_is_refused_unless_allowed(
    tmp_path: Path, small: None
) -> None:
    root = write_corpus(tmp_path / "corpus")
    chapter = root / "LibriSpeech" / "train-clean-100" / "19" / "198"
    (chapter / "19-198-0000.flac").unlink()
    with open(chapter / "19-198.trans.txt", "a") as stream:
        stream.write("20-198-0002 ANOTHER SPEAKER\n19-198-0003 \n\n")
    (chapter / "19-198-0003.flac").write_bytes(b"")
    message = (
        r"train-clean-100: 2 utterances instead of the 3 of the release \(3 left out, "
        r"first 19-198-0000: no audio file\); unpack train-clean-100.tar.gz again"
    )
    with pytest.raises(UserError, match=message):
        prepare_librispeech(root, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    results = prepare_librispeech(root, tmp_path / "data", allow_partial=True)
    assert results["train_960"][0] == 4
    listed = read_dropped(tmp_path / "data" / "train_960")
    assert {(one.id, one.reason) for one in listed} == {
        ("19-198-0000", "no audio file"),
        ("19-198.trans.txt:3", "bad row"),
        ("19-198-0003", "empty text"),
    }


def test_the_table_states_what_is_missing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["librispeech", "--librispeech_dir", str(corpus), "--output", str(tmp_path)]
    prepare_data.main([*words, "--allow_partial", "--train_set", "train_clean_100"])
    table = capsys.readouterr().out
    assert "| train_clean_100 | 3 | 28,539 | 0 |" in table
    assert "| dev | 3 | 5,567 | 0 |" in table
    with pytest.raises(UserError, match="3 utterances instead of the 28,539"):
        prepare_data.main(words)


def test_missing_parts_are_downloaded(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = write_corpus(tmp_path / "origin")
    files = {}
    for part in CORPUS:
        archive = pack(origin, part, tmp_path / f"{part}.tar.gz")
        content = files[f"/12/{archive.name}"] = archive.read_bytes()
        values = (len(content), hashlib.md5(content).hexdigest())
        monkeypatch.setitem(PARTS, part, Part(PARTS[part].utterances, *values))
    folder = tmp_path / "downloads"
    with serve(files) as server:
        url = f"{server.url}/12/"
        download_librispeech(folder, "train_clean_100", url)
        assert [path for path, _ in server.requests] == [
            f"/12/{part}.tar.gz"
            for part in sorted(set(CORPUS) - {"train-clean-360", "train-other-500"})
        ]
        server.requests.clear()
        (folder / "dev-clean.tar.gz").unlink()
        download_librispeech(folder / "LibriSpeech", "train_clean_460", url)
        assert [path for path, _ in server.requests] == ["/12/train-clean-360.tar.gz"]
        results = prepare_librispeech(folder, tmp_path / "data", "train_clean_460")
        assert results["train_clean_460"] == (4, [])
        files["/12/train-other-500.tar.gz"] = b"x" * PARTS["train-other-500"].size
        with pytest.raises(UserError, match="has md5 .* instead of .*was removed"):
            download_librispeech(folder, "train_960", url)
    assert not (folder / "train-other-500.tar.gz").exists()


def test_parts_that_are_there_are_not_downloaded(corpus: Path) -> None:
    download_librispeech(corpus, "train_960", "http://127.0.0.1:1")
