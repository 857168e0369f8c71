"""Fish Fillets: texts, roles, split by level, dropped recordings, download."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from fillets_corpus import LEVELS, dialog, write_corpus, write_dialogs, write_sound

from speechllm.bin.prepare_data import main
from speechllm.corpora import _debian, fillets
from speechllm.corpora._debian import Package, Unavailable
from speechllm.corpora.fillets import SETS, assign_levels, prepare_fillets
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.text.normalization import ctc_text
from speechllm.utils.errors import UserError


def read(folder, table: str) -> dict[str, str]:
    """Read one table of all sets."""
    tables = [read_table(folder / name / table) for name in SETS]
    return {key: value for entries in tables for key, value in entries.items()}


def dropped(folder) -> dict[str, str]:
    return {e.id: e.reason for name in SETS for e in read_dropped(folder / name)}


def add(root, level: str, key: str, font: str, english: str, czech: str) -> None:
    """Add a Czech recording and its text to a corpus."""
    path = root / "script" / level / "dialogs_cs.lua"
    old = path.read_text("utf-8") if path.exists() else ""
    write_dialogs(root, level, "cs", old + "".join(dialog(key, font, english, czech)))
    write_sound(root, level, "cs", key)


def test_texts_roles_and_translations(tmp_path):
    root = write_corpus(tmp_path / "corpus")
    add(root, "cave", "a", "font_cyan", "I have 3.", "Mám 3.")
    add(root, "cave", "b", "font_viking1", "Hush!", "Tiše!")
    write_dialogs(
        root, "cave", "fr", "".join(dialog("b", "font_big", "Hush!", "Hush!"))
    )
    shouts = "".join(dialog("shout", "", "Ouch.", "Au."))
    write_dialogs(root, "share", "cs", shouts, part="shout_")
    write_sound(root, "share/border", "cs", "shout")
    main(["fillets", "--fillets_dir", str(root), "--output", str(tmp_path / "data")])
    text, speakers = read(tmp_path / "data", "text"), read(tmp_path / "data", "utt2spk")
    english, german = (read(tmp_path / "data", f"text.{x}") for x in ("en", "de"))
    expected = {
        "cs_big-cave-cav-0": "tři ryby, jedna.",
        "nl_small-cave-cav-1": "drie ryby, twee.",
        "cs_cave_cyan-cave-a": "Mám tři.",
        "cs_viking1-cave-b": "Tiše!",
        "cs_share_other-share-shout": "Au.",
    }
    assert {key: text[key] for key in expected} == expected
    assert all(speakers[key] == key.split("-")[0] for key in text)
    assert english["cs_cave_cyan-cave-a"] == "I have 3."
    assert english["nl_small-cave-cav-1"] == "three fish, two."
    assert german["nl_small-cave-cav-1"] == "drei ryby, zwei."
    assert read(tmp_path / "data", "text.nl")["cs_big-cave-cav-0"] == "drie ryby, een."
    assert read(tmp_path / "data", "text.fr") == {}  # a copy of the English text
    assert not any("airplane" in key for key in german)
    assert len(text) == 2 * 4 * len(LEVELS) + 3
    for name in SETS:
        assert validate_data_dir(tmp_path / "data" / name) == []


def test_recordings_that_cannot_be_used(tmp_path):
    root = write_corpus(tmp_path / "corpus")
    long = "dlouhá věta " * 5
    for key, czech in {
        "none": "...",
        "hours": "Konkrétně %1 hodin!",
        "russian": "Здравствуйте.",
        "fast": long,
        "long": "Dobrý den.",
        "broken": "Dobrou noc.",
    }.items():
        add(root, "cave", key, "font_big", "English", czech)
    write_sound(root, "cave", "cs", "alone")
    write_sound(root, "cave", "cs", "long", seconds=2.0)
    (root / "sound/cave/cs/broken.ogg").write_bytes(b"OggS nothing")
    prepare_fillets(root, tmp_path / "data", max_seconds=1.5)
    assert dropped(tmp_path / "data") == {
        "cs_big-cave-none": "empty text",
        "cs_big-cave-hours": "placeholder in text",
        "cs_big-cave-russian": "another script",
        "cs_big-cave-fast": "text does not fit the audio",
        "cs_big-cave-long": "too long",
        "cs_big-cave-broken": "unreadable audio",
        "cs_cave_other-cave-alone": "no text",
    }
    assert (
        not dropped(tmp_path / "data").keys() & read(tmp_path / "data", "text").keys()
    )


def test_levels_are_ordered_by_their_md5():
    levels = [level for level in LEVELS for _ in range(5)]
    sets = assign_levels(levels)
    order = sorted(LEVELS, key=lambda level: hashlib.md5(level.encode()).hexdigest())
    # of 8 levels, 0 lies below 0.10 and 1/8 below 0.15
    assert [sets[level] for level in order] == ["test", "dev", *["train"] * 6]
    assert assign_levels(reversed(levels)) == sets


def test_no_sentence_is_in_two_sets(tmp_path):
    root = write_corpus(tmp_path / "corpus")
    sets = assign_levels(level for level in LEVELS for _ in range(8))
    level_of = {name: level for level, name in sets.items()}
    add(root, level_of["test"], "t", "font_big", "Yes!", "Ano, ano.")
    add(root, level_of["train"], "same", "font_big", "Indeed.", "ano ano")
    add(root, level_of["train"], "english", "font_big", "Yes.", "Nu.")
    add(root, level_of["train"], "dev", "font_big", "So.", "jo")
    add(root, level_of["dev"], "d", "font_big", "Really", "Jo!")
    add(root, level_of["train"], "other", "font_big", "Perhaps.", "Asi.")
    prepare_fillets(root, tmp_path / "data")
    train, dev = level_of["train"], level_of["dev"]
    assert dropped(tmp_path / "data") == {
        f"cs_big-{train}-same": "sentence also in test",
        f"cs_big-{train}-english": "sentence also in test",
        f"cs_big-{train}-dev": "sentence also in dev",
    }
    places = {}
    for name in SETS:
        languages = read_table(tmp_path / "data" / name / "utt2lang")
        for table in ("text", "text.en", "text.de", "text.cs", "text.nl"):
            for key, text in read_table(tmp_path / "data" / name / table).items():
                lang = table[5:] or languages[key]
                assert places.setdefault((lang, ctc_text(text, lang)), name) == name
    assert f"cs_big-{dev}-d" in read_table(tmp_path / "data/dev/text")


def test_a_few_utterances_per_language(tmp_path):
    root = write_corpus(tmp_path / "corpus")
    prepare_fillets(root, tmp_path / "all")
    prepare_fillets(root, tmp_path / "few", max_utterances=6)
    sizes = {"train": 12, "dev": 4, "test": 4}
    for name, size in sizes.items():
        few = read_table(tmp_path / "few" / name / "text")
        assert len(few) == size
        assert few.items() <= read_table(tmp_path / "all" / name / "text").items()


def test_incomplete_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folders sound and script in it; unpack"):
        prepare_fillets(tmp_path, tmp_path / "data")
    (tmp_path / "script").mkdir()
    (tmp_path / "sound").mkdir()
    with pytest.raises(UserError, match="no texts in dialogs_cs.lua of any level"):
        prepare_fillets(tmp_path, tmp_path / "data")
    root = write_corpus(tmp_path / "corpus")
    write_sound(root, "cave/part", "cs", "cav-0")
    with pytest.raises(UserError, match="has the same level and key; remove one"):
        prepare_fillets(root, tmp_path / "data")
    for path in root.glob("sound/*/nl/*.ogg"):
        path.unlink()
    (root / "sound/cave/part/cs/cav-0.ogg").unlink()
    with pytest.raises(UserError, match=r"no recordings <level>/nl/<key>\.ogg; unpack"):
        prepare_fillets(root, tmp_path / "data")


# ---------------------------------------------------------------- packages


def deb(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """Return a Debian package: an ar file with data.tar.xz."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    packed = b"!<arch>\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": data.getvalue(),
    }
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        packed += header.encode() + content + b"\n" * (len(content) % 2)
    return packed


GAME = "./usr/share/games/fillets-ng"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Put small packages in place of Debian's; return the mirror's files."""
    root = write_corpus(tmp_path / "corpus", keys=1)
    contents = {"fillets-ng-data": {"./usr/share/doc/x/copyright": b"GPL-2"}}
    for path in sorted(root.rglob("*.*")):
        package = "fillets-ng-data"
        if path.suffix == ".ogg":
            package += f"-{path.parent.name}"
        name = f"{GAME}/{path.relative_to(root).as_posix()}"
        contents.setdefault(package, {})[name] = path.read_bytes()
    contents["fillets-ng-data"][f"{GAME}/images/fish.png"] = b"image"
    files, pinned = {}, []
    for name, content in contents.items():
        packed = deb(content, {f"{GAME}/font/a.ttf": "/usr/share/fonts/a.ttf"})
        digest = hashlib.sha256(packed).hexdigest()
        package = Package(name, "1-1", digest, "fillets-ng-data")
        files[f"/f/fillets-ng-data/{package.file_name}"] = packed
        pinned.append(package)
    monkeypatch.setattr(fillets, "_PACKAGES", pinned)
    return files


def refuse(packages, folder):
    raise Unavailable("apt-get is not installed")


def test_packages_come_from_the_mirror_without_apt(tmp_path, packages, monkeypatch):
    from file_server import serve

    monkeypatch.setattr(_debian, "apt_download", refuse)
    with serve(packages) as server:
        monkeypatch.setattr(_debian, "MIRROR", server.url)
        folder = fillets.fetch_fillets(tmp_path / "downloads")
        assert fillets.fetch_fillets(tmp_path / "downloads") == folder
        assert len(server.requests) == 3
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [folder.name]
    assert (folder / "usr/share/doc/x/copyright").read_bytes() == b"GPL-2"
    assert not (folder / "usr/share/games/fillets-ng/images").exists()
    assert not (folder / "usr/share/games/fillets-ng/font").exists()
    prepare_fillets(folder, tmp_path / "data")
    assert len(read(tmp_path / "data", "text")) == 2 * len(LEVELS)


def test_packages_of_apt_are_checked(tmp_path, packages, monkeypatch, capsys):
    from file_server import serve

    names = {path.rpartition("/")[2]: content for path, content in packages.items()}

    def run(folder, arguments):
        for name, content in names.items():
            (folder / name).write_bytes(content)

    monkeypatch.setattr(_debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(_debian, "_apt", run)
    monkeypatch.setattr(_debian, "MIRROR", "http://127.0.0.1:9")
    folder = fillets.fetch_fillets(tmp_path / "apt")
    assert (folder / "usr/share/doc/x/copyright").is_file()

    names["fillets-ng-data_1-1_all.deb"] = b"built again"
    with serve(packages) as server:
        monkeypatch.setattr(_debian, "MIRROR", server.url)
        fillets.fetch_fillets(tmp_path / "mirror")
    assert "apt-get's fillets-ng-data_1-1_all.deb has sha256" in capsys.readouterr().out


def test_damaged_packages_are_refused(tmp_path):
    whole = deb({"./usr/a": b"content" * 100})
    for content in (
        b"",
        b"!<arch>\n",
        b"!<arch>\n" + b"x" * 60,
        whole[:-40],
        whole[8:],
    ):
        (tmp_path / "a.deb").write_bytes(content)
        with pytest.raises(
            UserError, match=r"a\.deb: cannot be unpacked \(.*remove it"
        ):
            _debian.unpack_deb(tmp_path / "a.deb", tmp_path)
    (tmp_path / "a.deb").write_bytes(deb({"../../evil": b"x"}))
    with pytest.raises(UserError, match="outside of the folder"):
        _debian.unpack_deb(tmp_path / "a.deb", tmp_path)
    assert not (tmp_path.parent / "evil").exists()
