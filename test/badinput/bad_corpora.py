"""Damaged lists, texts and audio of corpora, for ``prepare_data``."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator

from bad_case import Case, Outcome, Place, either, passes, refused
from bad_outputs import corpora as write_japanese
from bad_tables import damages

#: Corpus -> arguments, and the files that are damaged.
CORPORA: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "jsut": (["jsut", "--jsut_dir", "jsut"], ("jsut/basic5000/transcript_utf8.txt",)),
    "common_voice": (
        ["common_voice", "--common_voice_dir", "cv", "--min_share", "0"],
        ("cv/ja/train.tsv", "cv/ja/test.tsv"),
    ),
    "must_c": (
        ["must_c", "--must_c_dir", "must_c", "--tgt_lang", "de"],
        (
            "must_c/en-de/data/train/txt/train.yaml",
            "must_c/en-de/data/train/txt/train.en",
            "must_c/en-de/data/tst-COMMON/txt/tst-COMMON.de",
            "must_c/en-de/data/dev/wav/ted_767.wav",
        ),
    ),
    "covost2": (
        ["covost2", "--covost2_dir", "covost", "--common_voice_dir", "covost",
         "--src_lang", "en", "--tgt_lang", "de", "--min_share", "0"],
        ("covost/covost_v2.en_de.tsv", "covost/en/validated.tsv"),
    ),
    "europarl_st": (
        ["europarl_st", "--europarl_st_dir", "europarl", "--src_lang", "en",
         "--tgt_lang", "de"],
        ("europarl/v1.1/en/de/train/segments.lst",
         "europarl/v1.1/en/de/test/segments.de",
         "europarl/v1.1/en/de/dev/speakers.lst"),
    ),
    "fillets": (
        ["fillets", "--fillets_dir", "fillets"],
        ("fillets/script/cave/dialogs_cs.lua", "fillets/sound/cave/cs/cav-0.ogg"),
    ),
    "reazonspeech": (
        ["reazonspeech", "--reazonspeech_dir", "reazon", "--dev_utterances", "1",
         "--test_utterances", "1"],
        ("reazon/all.tsv", "reazon/data/000.tar"),
    ),
}  # fmt: skip


def write_corpus(place: Place, corpus: str) -> list[str]:
    """Write a small corpus and return the arguments that convert it."""
    if corpus in ("jsut", "common_voice"):
        write_japanese(place)
    elif corpus == "must_c":
        import must_c_corpus as source

        source.write_language(
            place.folder / "must_c", "de", source.CORPUS, source.ENGLISH, source.GERMAN
        )
    elif corpus == "covost2":
        import covost2_corpus as source

        source.write_corpus(place.folder / "covost")
    elif corpus == "europarl_st":
        import europarl_st_corpus as source

        source.write_pair(place.folder / "europarl", suffix=".wav")
    elif corpus == "fillets":
        import fillets_corpus as source

        source.write_corpus(place.folder / "fillets")
    else:
        data = (place.folder / "good.wav").read_bytes()
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for number in range(4):
                entry = tarfile.TarInfo(f"000/{number}.flac")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        place.write("reazon/data/000.tar", stream.getvalue())
        rows = [f"000/{number}.flac\t水です。\n" for number in range(4)]
        place.write("reazon/all.tsv", "".join(rows))
    line = ["speechllm.bin.prepare_data", *CORPORA[corpus][0], "--output", "new"]
    return line


def cases() -> Iterator[Case]:
    """Yield each damage of each file, values in lists, and bad shards."""
    for corpus, (_, files) in CORPORA.items():
        yield Case(
            "corpora", f"{corpus}: whole",
            lambda place, corpus=corpus: write_corpus(place, corpus), passes(),
        )  # fmt: skip
        for file in files:
            for damage, (change, effect) in damages().items():

                def build(
                    place: Place, corpus=corpus, file=file, change=change
                ) -> list[str]:
                    line = write_corpus(place, corpus)
                    change(place.folder / file)
                    return line

                name = file.rpartition("/")[2]
                if damage == "UTF-16" and name.endswith((".wav", ".ogg", ".tar")):
                    continue
                refusal = refused(name)
                if "twice" in damage or name.endswith(".tar"):
                    refusal = refused()
                check = either(refusal, passes())
                # one of many files, without which the others are still converted
                sound = file.endswith((".wav", ".tar", ".lua", ".ogg"))
                if damage in ("missing", "a folder", "a FIFO") and not sound:
                    check = refusal
                elif effect == "good" and not sound:
                    check = passes()
                yield Case(
                    "corpora", f"{corpus}: {name}, {damage}", build, check, seconds=20
                )
    yield from lists()
    yield from shards()


def lists() -> Iterator[Case]:
    """Yield bad values in the lists of segments of MuST-C."""
    values = ("nan", "inf", "-1", "x", "", "null", "[1]", "{}", "1e400", "1:30", "yes",
              "!!python/name:os.system", "*a", "'", "0x10")  # fmt: skip
    for key in ("duration", "offset", "speaker_id", "wav"):
        for value in values:

            def build(place: Place, key=key, value=value) -> list[str]:
                line = write_corpus(place, "must_c")
                path = place.folder / "must_c/en-de/data/train/txt/train.yaml"
                rows = path.read_text().splitlines()
                fields = {"duration": "2.000000", "offset": "0.000000",
                          "speaker_id": "spk.1", "wav": "ted_1.wav"}  # fmt: skip
                fields[key] = value
                inner = ", ".join(f"{k}: {v}" for k, v in fields.items())
                rows[1] = f"- {{{inner}}}"
                path.write_text("\n".join(rows) + "\n")
                return line

            check = either(refused("train.yaml"), passes())
            yield Case("corpora", f"must_c: {key}: {value!r}", build, check)
    for wav in ("../../../../../user/secret.wav", "/dev/zero",
    "http://127.0.0.1:{port}/a",
                "a\0b.wav", "../wav", "'a b.wav'"):  # fmt: skip

        def build(place: Place, wav=wav) -> list[str]:
            line = write_corpus(place, "must_c")
            path = place.folder / "must_c/en-de/data/train/txt/train.yaml"
            text = path.read_text()
            path.write_text(text.replace("ted_12.wav", wav.format(port=place.port)))
            return line

        check = either(refused("train.yaml"), passes())
        yield Case("corpora", f"must_c: wav {wav!r}", build, check, seconds=20)


def shards() -> Iterator[Case]:
    """Yield tar files with links, absolute and outer paths, and damage."""

    def shard(member: Callable[[tarfile.TarFile], None]):
        def build(place: Place) -> list[str]:
            line = write_corpus(place, "reazonspeech")
            with tarfile.open(place.folder / "reazon/data/000.tar", "a") as archive:
                member(archive)
            return line

        return build

    def file(name: str) -> Callable[[tarfile.TarFile], None]:
        def add(archive: tarfile.TarFile) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))

        return add

    def special(kind: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
        def add(archive: tarfile.TarFile) -> None:
            entry = tarfile.TarInfo("000/x")
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)

        return add

    def outside(outcome: Outcome) -> str:
        return refused("000.tar")(outcome)

    for name in ("../../../user/notes.txt", "/tmp/badinput-evil", "a/../../../evil"):
        yield Case(
            "corpora", f"reazonspeech: member {name}", shard(file(name)), outside
        )
    for name, add in {
        "a link": special(tarfile.SYMTYPE, "/etc/passwd"),
        "a hard link": special(tarfile.LNKTYPE, "/etc/passwd"),
        "a FIFO": special(tarfile.FIFOTYPE),
        "a device": special(tarfile.CHRTYPE),
    }.items():
        yield Case("corpora", f"reazonspeech: member is {name}", shard(add), outside)
