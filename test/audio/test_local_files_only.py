"""Recordings are local files: no address, no playlist, no other file is opened."""

from __future__ import annotations

import os
import shutil
import socket
import threading

import numpy as np
import pytest
from audio_files import encode_with_ffmpeg

from speechllm.audio import load_audio, stream_audio
from speechllm.audio.io import audio_info, seconds_by_header
from speechllm.utils.errors import UserError

RATE = 16000


def read_all(path) -> list:
    """Read a recording in each way; return the errors."""
    errors = []
    for read in (load_audio, audio_info, lambda p: list(stream_audio(p))):
        with pytest.raises(UserError) as refused:
            read(path)
        errors.append(str(refused.value))
    assert seconds_by_header(path) is None
    return errors


@pytest.fixture
def listener():
    """A server on loopback; yields its port and the connections that were made."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        ended = threading.Event()

        def accept():
            while not ended.is_set():
                try:
                    connections.append(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], connections
        ended.set()
        thread.join()


@pytest.fixture
def secret(tmp_path):
    """Another recording of this machine, 1 s."""
    path = tmp_path / "secret.m4a"
    encode_with_ffmpeg(path, np.sin(np.arange(RATE) / 9).astype(np.float32) / 2, "aac")
    return path


@pytest.mark.parametrize("scheme", ["http", "https", "tcp", "rtsp", "udp", "rtmp"])
def test_addresses_are_refused_without_a_connection(listener, scheme):
    port, connections = listener
    for end in ("a.wav", "a.m4a", "?listen"):
        errors = read_all(f"{scheme}://127.0.0.1:{port}/{end}")
        assert all("recordings are local files" in error for error in errors)
    assert connections == []


@pytest.mark.parametrize("name", ["pipe:0", "concat:secret.m4a", "subfile:secret.m4a"])
def test_other_protocols_are_names_of_missing_files(
    tmp_path, monkeypatch, name, secret
):
    monkeypatch.chdir(tmp_path)
    assert all("does not exist" in error for error in read_all(name))


def test_playlists_are_refused(tmp_path, monkeypatch, listener, secret):
    port, connections = listener
    monkeypatch.chdir(tmp_path)
    address = f"http://127.0.0.1:{port}/a.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} "
    contents = {
        "a.m3u8": hls.format(address),
        "b.m3u8": hls.format("secret.m4a"),
        "c.m3u": hls.format(f"file://{secret}"),
        "d.ffconcat": "ffconcat version 1.0\nfile secret.m4a\n",
        "e.wav": "ffconcat version 1.0\nfile secret.m4a\n",
        "f.sdp": sdp + "RTP/AVP 0\n",
        "g.mpd": f'<?xml version="1.0"?><MPD><BaseURL>{address}</BaseURL></MPD>',
        "h.m4a": hls.format("secret.m4a"),
        "i.pls": f"[playlist]\nFile1={address}\n",
        "j.ram": address,
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        for error in read_all(tmp_path / name):
            assert "a playlist, not a recording" in error, (name, error)
    assert connections == []


def test_pictures_and_indexes_open_no_other_file(tmp_path, monkeypatch, secret):
    monkeypatch.chdir(tmp_path)
    shutil.copy(secret, tmp_path / "recording.png")  # the name that FFmpeg sees
    for name in ("a.png", "recording%d.png", "a.txt", "a.ffmeta"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        read_all(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "10:30 meeting.m4a",
        "http:a.m4a",
        "pipe:0",
        "%d.m4a",
        "-",
        "a?b#c.m4a",
        "concat:x|y",
    ],
)
def test_odd_names_of_local_files_are_read(tmp_path, monkeypatch, secret, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(secret, tmp_path / name)
    expected = load_audio(secret)
    for path in (name, tmp_path / name):
        assert np.array_equal(load_audio(path), expected)
        assert np.array_equal(np.concatenate(list(stream_audio(path))), expected)
        assert audio_info(path).seconds == pytest.approx(len(expected) / RATE, abs=0.01)
        assert seconds_by_header(path) == pytest.approx(1.0, abs=0.1)
    os.fstat(0)  # standard input was not taken for a file named "-" and closed
