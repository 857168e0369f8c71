"""FLEURS in the format of its repository: sets, translations, downloads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from file_server import serve
from fleurs_corpus import CORPUS, row, write_corpus

from speechllm.bin import prepare_data
from speechllm.corpora import fleurs
from speechllm.corpora.fleurs import (
    download_fleurs,
    find_language,
    prepare_fleurs,
    short_code,
)
from speechllm.data.kaldi_table import iterate_table, read_dropped
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("fleurs"), spoken=False)


def table(path: Path) -> dict[str, str]:
    return dict(iterate_table(path))


def test_sentences_are_joined_by_their_number(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    results = prepare_fleurs(corpus, data, ["en"], ["de", "ja"], tmp_path / "unpacked")
    assert {name: count for name, (count, _) in results.items()} == {
        "train": 4,
        "dev": 1,
        "test": 2,
    }
    for name in results:
        assert validate_data_dir(data / name) == []
    assert table(data / "train" / "text") == {
        "en-0001-11": "Water is wet.",
        "en-0002-12": 'He said "yes" twice.',
        "en-0003-13": "Good morning, all.",
        "en-0003-14": "Good morning, all.",
    }
    assert table(data / "train" / "text.de") == {
        "en-0001-11": "Wasser ist nass.",
        "en-0003-13": "Guten Morgen, Leute.",
        "en-0003-14": "Guten Morgen, Leute.",
    }
    assert table(data / "test" / "text.ja") == {"en-0020-31": "雨が降る。"}
    assert set(table(data / "test" / "utt2lang").values()) == {"en"}
    audio = tmp_path / "unpacked" / "data" / "en_us" / "audio"
    assert table(data / "dev" / "wav.scp") == {"en-0010-21": f"{audio}/dev/21.wav"}
    listed = [(one.id, one.reason) for one in read_dropped(data / "train")]
    assert listed == [
        ("en-0002-12", "no translation: de"),
        ("en-0002-12", "no translation: ja"),
    ]
    assert not (audio.parents[1] / "de_de").exists()  # only its text is needed


def test_one_language_is_recognition(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare_fleurs(corpus, data, ["ja_jp"], unpack_dir=tmp_path / "unpacked")
    assert table(data / "test" / "text") == {"ja-0020-74": "雨が降る。"}
    assert not list(data.glob("*/text.*"))


def test_any_pair_and_both_directions(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare_fleurs(corpus, data, ["de", "ja"], ["ja", "de"], tmp_path / "unpacked")
    assert table(data / "test" / "text.ja") == {"de-0020-61": "雨が降る。"}
    assert table(data / "test" / "text.de") == {"ja-0020-74": "Es regnet."}
    assert table(data / "train" / "utt2lang")["de-0001-41"] == "de"


@pytest.mark.parametrize("place", ["data", "."])
def test_unpacked_folders_are_read_in_place(tmp_path: Path, place: str) -> None:
    root = write_corpus(tmp_path / "corpus", packed=False, spoken=False)
    if place == ".":  # as in Google's archives
        for folder in (root / "data").iterdir():
            folder.rename(root / folder.name)
    prepare_fleurs(root, tmp_path / "data", ["en"], unpack_dir=tmp_path / "unpacked")
    audio = root / place / "en_us" / "audio" / "dev" / "21.wav"
    assert table(tmp_path / "data/dev/wav.scp") == {"en-0010-21": str(audio.resolve())}
    assert not (tmp_path / "unpacked").exists()


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    splits = {
        "train": [(1, "1", "Kept."), (2, "2", "No file."), (20, "3", "Tested.")],
        "dev": [(10, "4", "Kept."), (20, "5", "Tested.")],
        "test": [(20, "6", "Tested."), (20, "7", "Tested.")],
    }
    root = write_corpus(tmp_path / "corpus", {"en_us": splits}, False, False)
    folder = root / "data" / "en_us"
    (folder / "audio" / "train" / "2.wav").unlink()
    with open(folder / "train.tsv", "a") as stream:
        stream.write(row(1, "1", "Kept.") + row(4, "3", "").replace("3.wav", "1b.wav"))
        stream.write("5\t8.wav\tToo few columns.\n" + row(0, "9", "x")[1:])
    (folder / "audio" / "train" / "1b.wav").write_bytes(b"")
    prepare_fleurs(root, tmp_path / "data", ["en"], unpack_dir=tmp_path / "unpacked")
    assert set(table(tmp_path / "data/train/text")) == {"en-0001-1"}
    listed = {(o.id, o.reason) for o in read_dropped(tmp_path / "data/train")}
    assert listed == {
        ("en_us/train.tsv:6", "bad row"),
        ("en_us/train.tsv:7", "bad row"),
        ("en-0002-2", "no audio file"),
        ("en-0020-3", "sentence in another set"),
        ("en-0001-1", "listed twice"),
        ("en-0004-1b", "empty text"),
    }
    dev = [(o.id, o.reason) for o in read_dropped(tmp_path / "data/dev")]
    assert dev == [("en-0020-5", "sentence in another set")]
    assert len(table(tmp_path / "data/test/text")) == 2


def test_counts_of_the_card_are_compared(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "data"), "--unpack_dir", str(tmp_path / "u")]
    words += ["--src_lang", "en", "--tgt_lang", "de"]
    prepare_data.main(["fleurs", "--fleurs_dir", str(corpus), *words])
    found = capsys.readouterr()
    assert "| test | 2 | 0 |" in found.out
    assert "test.tsv: 2 rows instead of the 647 of the dataset's card" in found.err


def test_languages_are_found_by_both_codes() -> None:
    assert find_language("en") == find_language("en_us") == "en_us"
    assert find_language("zh") == find_language("cmn_hans_cn") == "cmn_hans_cn"
    assert find_language("no") == find_language("nb") == "nb_no"
    assert [short_code(code) for code in ("fil_ph", "yue_hant_hk")] == ["fil", "yue"]
    assert [short_code(code) for code in ("nb_no", "cmn_hans_cn")] == ["no", "zh"]
    with pytest.raises(UserError, match="no language 'xx'; there are: af am ar as ast"):
        find_language("xx")


def test_missing_languages_and_audio(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fr_fr: no such folder, nor"):
        prepare_fleurs(corpus, tmp_path, ["fr"])
    root = write_corpus(tmp_path / "c", {"en_us": CORPUS["en_us"]}, spoken=False)
    (root / "data/en_us/audio/test.tar.gz").unlink()
    with pytest.raises(UserError, match=r"test.tar.gz: not found, nor .*audio/test"):
        prepare_fleurs(root, tmp_path / "d", ["en"], unpack_dir=tmp_path / "u")


def test_every_language_has_a_name_in_the_prompts() -> None:
    from lhotse.recipes.fleurs import DEFAULT_LANGUAGES

    from speechllm.text.prompts import read_prompts

    conf = Path(__file__).parents[2] / "egs2" / "fleurs" / "speechllm1" / "conf"
    names = read_prompts(conf / "prompts.yaml").languages
    assert set(names) == {short_code(code) for code in DEFAULT_LANGUAGES}
    assert len(set(names.values())) == 102


def test_downloads_are_checked_by_the_hubs_sums(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, infos = {}, []
    prefix = f"/datasets/{fleurs.REPOSITORY}/resolve/{fleurs.REVISION}/"
    for path in (corpus / "data").rglob("*.*"):
        if path.is_file():
            name, content = str(path.relative_to(corpus)), path.read_bytes()
            files[prefix + name] = content
            info = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            if path.suffix == ".gz":
                digest = hashlib.sha256(content).hexdigest()
                info["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 1}
            infos.append(info)
    folder = tmp_path / "downloads"
    with serve(files) as server:
        address = f"/api/datasets/{fleurs.REPOSITORY}/paths-info/{fleurs.REVISION}"
        server.files[address] = json.dumps(infos).encode()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        for _ in range(2):
            download_fleurs(folder, ["en"], ["de"], folder)
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert found == {
            *(f"data/{c}/{s}.tsv" for c in ("en_us", "de_de") for s in fleurs.SPLITS),
            *(f"data/en_us/audio/{split}.tar.gz" for split in fleurs.SPLITS),
        }
        prepare_fleurs(folder, tmp_path / "data", ["en"], ["de"], folder)
        for path in folder.rglob("*.tar.gz"):
            path.unlink()
        server.requests.clear()
        download_fleurs(folder, ["en"], ["de"], folder)
        assert server.requests == []
        prepare_fleurs(folder, tmp_path / "data", ["en"], ["de"], folder)
        name = "data/ja_jp/audio/dev.tar.gz"
        server.files[prefix + name] = bytes(len(server.files[prefix + name]))
        with pytest.raises(UserError, match="has sha256 .* instead of .*removed"):
            download_fleurs(folder, ["ja"], unpack_dir=folder)
        server.files[address] = b"[]"
        with pytest.raises(UserError, match="has no data/ja_jp/audio/t.* in revision"):
            download_fleurs(folder, ["ja"], unpack_dir=folder)
    with pytest.raises(UserError, match="cannot be read .*; check the network"):
        download_fleurs(folder, ["ja"], unpack_dir=folder)
