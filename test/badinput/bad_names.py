"""Names and sources of recordings: URLs, playlists, devices, odd file names, ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from bad_audio import encoded, format_case, load_case, transcribe_case
from bad_base import tone, wav_bytes, write_rows
from bad_case import SILENT, Case, Place, either, listed, passes, refused

FAMILY = "names and sources"
KANA = "あ" * 84


def sources() -> dict[str, str]:
    """Return what must never be opened, by its name; {port} is the listener's."""
    return {
        "http": "http://127.0.0.1:{port}/a.wav",
        "https": "https://127.0.0.1:{port}/a.wav",
        "ftp": "ftp://127.0.0.1:{port}/a.wav",
        "rtmp": "rtmp://127.0.0.1:{port}/a",
        "rtsp": "rtsp://127.0.0.1:{port}/a",
        "tcp": "tcp://127.0.0.1:{port}",
        "tcp that listens": "tcp://127.0.0.1:45871?listen",
        "udp": "udp://127.0.0.1:45872",
        "tls": "tls://127.0.0.1:{port}",
        "gopher": "gopher://127.0.0.1:{port}/a",
        "icecast": "icecast://127.0.0.1:{port}/a",
        "unix": "unix:/tmp/no-such-socket",
        "concat": "concat:good.wav|wav/a-1.wav",
        "concatf": "concatf:list.txt",
        "subfile": "subfile,,start,0,end,9000,,:good.wav",
        "data": "data:audio/wav;base64,UklGRg==",
        "crypto": "crypto:good.wav",
        "cache": "cache:http://127.0.0.1:{port}/a.wav",
        "async": "async:http://127.0.0.1:{port}/a.wav",
        "hls": "hls+http://127.0.0.1:{port}/a.m3u8",
        "pipe": "pipe:0",
        "fd": "fd:",
        "md5": "md5:stolen",
        "tee": "tee:good.wav",
        "lavfi": "sine=frequency=440:duration=1",
        "missing": "no-such-file.wav",
        "folder": "wav",
        "zero device": "/dev/zero",
        "null device": "/dev/null",
        "random device": "/dev/urandom",
        "terminal device": "/dev/tty",
        "process memory": "/proc/self/mem",
        "empty": " ",
        "command": "touch planted.txt; cat good.wav |",
        "command first": "| touch planted.txt",
        "ark position": "good.wav:123",
        "ark that is none": "a.ark:5",
        "folder with a slash": "wav/",
        "parent": "..",
        "long": "a" * 300 + ".wav",
        "long path": "a/" * 3000 + "a.wav",
        "NUL": "a\0b.wav",
    }


def playlists() -> dict[str, str]:
    """Return playlists, which name other files, by their kind."""
    return {
        "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n"
        "#EXT-X-ENDLIST\n",
        "ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
        "m3u": "{target}\n",
        "pls": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=audio {port} RTP/AVP 0\n",
        "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet '
        'mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{target}'
        "</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "ism": "<SmoothStreamingMedia><StreamIndex Url='{target}'/>"
        "</SmoothStreamingMedia>",
        "svg": "<svg><image href='{target}'/></svg>",
    }


def strange_names() -> dict[str, str]:
    """Return names of sound files that are unusual."""
    return {
        "colon": "10:30 meeting.wav",
        "protocol": "http:a.wav",
        "space": "a b.wav",
        "dash": "-a.wav",
        "kana": KANA[:60] + ".wav",
        "percent": "a%20%s%d.wav",
        "braces": "{a}[b].wav",
        "quotes": "a'b\"c.wav",
        "dollar": "$(touch planted.txt).wav",
        "star": "a*?.wav",
        "semicolon": "a;b.wav",
        "backslash": "a\\b.wav",
        "comma": "subfile,,a.wav",
        "emoji": "🎤.wav",
        "suffix in capitals": "A.WAV",
        "no suffix": "recording",
        "many dots": "a.b.c.wav",
        "hash": "a#b.wav",
        "255 bytes": "a" * 251 + ".wav",
        "NFD": "e\u0301.wav",
        "right to left": "\u202ea.wav",
        "m3u8 suffix": "sound.m3u8",
        "txt suffix": "sound.txt",
        "JOB": "JOB.wav",
        "at": "@a.wav",
        "tilde": "~a.wav",
    }


def cases() -> Iterator[Case]:
    """Yield sources, playlists and names for the readers, and ids for the tables."""
    for name, source in sources().items():
        yield from source_cases(name, source)
    for kind, content in playlists().items():
        for suffix in (kind, "wav"):
            for target in ("local", "network"):
                yield from playlist_cases(kind, content, suffix, target)
    for name, file in strange_names().items():

        def build(place: Place, given: str) -> None:
            place.write(given, wav_bytes(tone(2.0, 1)))

        for make in (load_case, transcribe_case, format_case):
            if name == "dash" and make is transcribe_case:
                continue  # an option by its form
            yield make(FAMILY, f"name: {name}", file, build, 2.0, False)
    yield from special_files()
    yield from folders()
    yield from ids()


def source_cases(name: str, source: str) -> Iterator[Case]:
    """Yield a source that is not a recording for each reader."""

    def fill(place: Place) -> str:
        place.write("list.txt", "good.wav\n")
        place.write("a.ark", b"junk and more")
        return source.format(port=place.port)

    def load(place: Place):
        given = fill(place)

        def run() -> None:
            from speechllm import load_audio

            load_audio(given)

        return run

    def scp(place: Place) -> list[str]:
        place.write("list.scp", f"bad {fill(place)}\ngood good.wav\n")
        return transcribe(place, "list.scp")

    def argument(place: Place) -> list[str]:
        return transcribe(place, "good.wav", fill(place))

    def formatted(place: Place) -> list[str]:
        rows = {"a-1": "wav/a-1.wav", "a-2": fill(place), "b-1": "wav/b-1.wav"}
        write_rows(place.folder / "data" / "wav.scp", rows)
        return ["speechllm.bin.format_audio", "--input", "data", "--output", "new"]

    def dropped(outcome) -> str:
        folder = outcome.place.folder / "new"
        kept = (folder / "wav.scp").read_text().split()
        told = (folder / "dropped.tsv").read_text()
        if "a-1" not in kept or "a-2" in kept or "a-2" not in told:
            return f"kept {kept}, dropped {told}"
        planted = outcome.place.folder / "planted.txt"
        return "the command ran" if planted.exists() else ""

    family = f"{FAMILY}: not a file"
    yield Case(family, f"load {name}", load, refused(), seconds=20)
    yield Case(
        family, f"format {name}", formatted,
        either(refused(), passes(dropped)), seconds=20,
    )  # fmt: skip
    yield Case(
        family, f"table {name}", scp,
        either(refused(), listed([""], {"good": 1.0})),
        seconds=20,
    )  # fmt: skip
    if "\0" not in source and name not in ("folder", "folder with a slash", "parent"):
        yield Case(
            family, f"transcribe {name}", argument,
            either(listed([""], {"good.wav": 1.0}), refused()), seconds=20,
        )  # fmt: skip


def transcribe(place: Place, *inputs: str) -> list[str]:
    """Return the arguments of ``speechllm transcribe``."""
    return [
        "speechllm.cli", "transcribe", "--model", str(place.model), "--format", "json",
        *inputs,
    ]  # fmt: skip


def playlist_cases(kind: str, content: str, suffix: str, target: str) -> Iterator[Case]:
    """Yield a playlist that names a local file or a URL, for each reader."""

    def build(place: Place, file: str) -> None:
        named = (
            "good.wav" if target == "local" else f"http://127.0.0.1:{place.port}/a.wav"
        )
        place.write(file, content.format(target=named, port=place.port))

    family = f"{FAMILY}: playlists"
    name = f"{kind} as .{suffix}, {target}"
    for make in (load_case, transcribe_case):
        yield make(family, name, f"list.{suffix}", build, None, True)
    if suffix == "wav":
        yield format_case(family, name, f"list.{suffix}", build, None, True)


def special_files() -> Iterator[Case]:
    """Yield FIFOs, links and unreadable files named as recordings."""

    def fifo(place: Place, file: str) -> None:
        os.mkfifo(place.folder / file)

    def loop(place: Place, file: str) -> None:
        os.symlink(file, place.folder / file)

    def dangling(place: Place, file: str) -> None:
        os.symlink("gone.wav", place.folder / file)

    def folder(place: Place, file: str) -> None:
        (place.folder / file).mkdir()

    def link(place: Place, file: str) -> None:
        os.symlink("good.wav", place.folder / file)

    def socket(place: Place, file: str) -> None:
        import socket as sockets

        with sockets.socket(sockets.AF_UNIX) as end:
            old = os.getcwd()
            os.chdir(place.folder)
            try:
                end.bind(file)
            finally:
                os.chdir(old)

    makers: dict[str, tuple[Callable, float | None]] = {
        "FIFO": (fifo, None),
        "link to itself": (loop, None),
        "link to nothing": (dangling, None),
        "folder": (folder, None),
        "socket": (socket, None),
        "link": (link, 1.0),
    }
    for name, (build, seconds) in makers.items():
        for make in (load_case, format_case, transcribe_case):
            if name == "folder" and make is transcribe_case:
                continue
            case = make(f"{FAMILY}: special files", name, "a.wav", build, seconds, True)
            case.seconds = 20
            if name == "FIFO":  # waits 30 s for its writer
                case.seconds = 45
            yield case

    def unreadable(place: Place, file: str) -> None:
        place.write(file, wav_bytes(tone(1.0)))
        os.chmod(place.folder / file, 0)

    for make in (load_case, format_case, transcribe_case):
        case = make(
            f"{FAMILY}: special files", "unreadable", "a.wav", unreadable, None, True
        )
        case.user_id = 65534
        yield case


def folders() -> Iterator[Case]:
    """Yield folders whose files must be transcribed, all, or named."""
    family = f"{FAMILY}: folders"
    for suffix in "ts m4b 3gp mka mpg flv mp2 mov mkv webm avi opus w64 rf64".split():

        def build(place: Place, suffix=suffix) -> list[str]:
            place.write(f"in/a.{suffix}", encoded(suffix))
            place.write("in/b.wav", wav_bytes(tone(1.0)))
            return transcribe(place, "in")

        good = {f"in/a.{suffix}": 2.0, "in/b.wav": 1.0}
        yield Case(family, f"a file .{suffix}", build, listed([], good))

    def hidden(place: Place) -> list[str]:
        place.write("in/._x.wav", b"\0\5\x16\7" + bytes(100))
        place.write("in/b.wav", wav_bytes(tone(1.0)))
        return transcribe(place, "in")

    yield Case(family, "a resource fork ._x.wav", hidden, listed([], {"in/b.wav": 1.0}))

    def linked(place: Place) -> list[str]:
        place.write("in/b.wav", wav_bytes(tone(1.0)))
        os.symlink("../wav", place.folder / "in" / "more")
        return transcribe(place, "in")

    def named(outcome) -> str:
        text = outcome.out + outcome.err
        return "" if "in/more" in text else "in/more is passed over"

    yield Case(family, "a linked folder", linked, passes(named))

    def ring(place: Place) -> list[str]:
        place.write("in/b.wav", wav_bytes(tone(1.0)))
        os.symlink("..", place.folder / "in" / "up")
        return transcribe(place, "in")

    yield Case(family, "a link to the parent", ring, passes(), seconds=20)

    def closed(place: Place) -> list[str]:
        place.write("in/b.wav", wav_bytes(tone(1.0)))
        place.write("in/closed/a.wav", wav_bytes(tone(1.0)))
        os.chmod(place.folder / "in" / "closed", 0)
        return transcribe(place, "in")

    def closed_check(outcome) -> str:
        if "in/closed" not in outcome.err:
            return f"{SILENT}: in/closed is passed over"
        return ""

    yield Case(family, "an unreadable folder", closed, closed_check, user_id=65534)

    def empty(place: Place) -> list[str]:
        (place.folder / "in").mkdir()
        return transcribe(place, "in")

    yield Case(family, "an empty folder", empty, refused("in"))

    def latin(place: Place) -> list[str]:
        place.write("in/b.wav", wav_bytes(tone(1.0)))
        name = os.fsencode(place.folder / "in") + "/日本.wav".encode("shift-jis")
        with open(name, "wb") as stream:
            stream.write(wav_bytes(tone(1.0)))
        return transcribe(place, "in")

    def latin_check(outcome) -> str:
        if len(outcome.out.splitlines()) != 2:
            return f"{SILENT}: {outcome.out!r}"
        return listed([], {"in/b.wav": 1.0})(outcome) if not outcome.status else ""

    yield Case(family, "a name in Shift-JIS", latin, latin_check)
    for kind, character in (("newline", "\n"), ("tab", "\t"), ("return", "\r")):

        def build(place: Place, character=character) -> list[str]:
            place.write(f"in/a{character}b.wav", wav_bytes(tone(1.0)))
            place.write("in/c.wav", wav_bytes(tone(1.0)))
            arguments = transcribe(place, "in")
            arguments[arguments.index("json")] = "table"
            return arguments

        def lines(outcome) -> str:
            rows = outcome.out.split("\n")[:-1]
            if len(rows) != 2 or any(len(row.split("\t")) != 2 for row in rows):
                return f"the table breaks: {outcome.out!r}"
            return ""

        yield Case(
            family, f"a {kind} in a name", build, either(passes(lines), refused())
        )


def ids() -> Iterator[Case]:
    """Yield ids of utterances that are file names, or cannot be, for stage 3."""
    given = {
        "84 kana": KANA,
        "kana of 255 bytes": "あ" * 85,
        "100 kana": "あ" * 100,
        "slash": "x/y",
        "parent": "../../user/notes.txt",
        "absolute": "/tmp/badinput-planted",
        "dot": ".",
        "dots": "..",
        "dash": "-rf",
        "colon": "a:b",
        "NUL": "a\0b",
        "NEL": "a\u0085b",
        "no-break space": "a\u00a0b",
        "ideographic space": "a\u3000b",
        "line separator": "a\u2028b",
        "300 letters": "c" * 300,
        "surrogate": "a\udc80b",
        "emoji": "🎤" * 60,
        "percent": "%s%n",
        "star": "*",
        "quote": "a'b",
        "shell": "$(touch planted.txt)",
        "nothing but combining": "\u0301\u0301",
    }
    for name, key in given.items():

        def build(place: Place, key=key) -> list[str]:
            data = place.folder / "data"
            rows = {"a-1": "wav/a-1.wav", key: "wav/a-2.wav"}
            tables = {
                "wav.scp": rows, "text": dict.fromkeys(rows, "Hello."),
                "utt2spk": {k: k for k in rows}, "spk2utt": {k: k for k in rows},
                "utt2lang": dict.fromkeys(rows, "en"),
            }  # fmt: skip
            (data / "text.fr").unlink()
            for table, content in tables.items():
                lines = sorted(f"{k} {v}\n" for k, v in content.items())
                text = "".join(lines)
                (data / table).write_bytes(text.encode("utf-8", "surrogateescape"))
            return ["speechllm.bin.format_audio", "--input", "data", "--output", "new"]

        def complete(outcome, key=key) -> str:
            new = outcome.place.folder / "new"
            kept = (new / "text").read_text().splitlines()
            told = (
                (new / "dropped.tsv").read_text()
                if (new / "dropped.tsv").exists()
                else ""
            )
            if not any(line.startswith("a-1 ") for line in kept):
                return "a-1 is lost"
            if len(kept) == 2 or key in told:
                inside = list(new.rglob("*.flac"))
                return "" if len(inside) == len(kept) else "a file is outside"
            return f"{key!r} is neither kept nor listed"

        yield Case(
            f"{FAMILY}: ids", name, build,
            either(refused("data"), passes(complete)),
        )  # fmt: skip
