"""The page of ``speechllm demo``, in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest
import soundfile

from speechllm import SpeechToText, load_audio
from speechllm.decoding.result import Result, Segment, Word
from speechllm.inference.long_form import Transcription
from speechllm.utils.errors import UserError

pytest.importorskip("gradio", reason="the extra demo is not installed")
from gradio import processing_utils

from speechllm.demo import page as demo

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "<img src=x onerror=document.title='hit'>${1+1}{{2}}"
WORDS = [Word("two", 0.5, 0.75, 0.25), Word(HOSTILE, 0.75, 1.5, 1.0)]


def result(text: str, words: list[Word] | None = None, **fields) -> Result:
    """Return the result of a recording with one segment."""
    passages = [Segment(0.5, 1.5, text)]
    return Result(text, [], 0.0, words=words, passages=passages, **fields)


def test_texts_are_escaped_and_coloured_by_confidence():
    html = demo.transcript_html(result("two", WORDS), "en")
    assert 'data-start="0.500" data-end="0.750"' in html
    assert 'rgb(255 140 0 / 75%)" title="confidence 25%">two</button> <button' in html
    assert "<img" not in html and "&lt;img" in html
    assert "> <" not in demo.transcript_html(result("two", WORDS), "ja")
    assert "<img" not in demo.segments_html(result(HOSTILE))
    found = {"asr": Transcription(1.5, result("a", flags=[HOSTILE]), HOSTILE)}
    html = demo.recording_html(f'/tmp/"{HOSTILE}.wav', found)
    assert "<img" not in html and html.count('src="') == 1
    joint = result("deux", WORDS, transcript="two")
    columns = demo.columns({"asr_st": Transcription(1.5, joint)}, "en")
    assert "title=" in columns[0] and "deux" in columns[1]


def test_progress_and_files_of_a_recording(tiny_model, speech_file, tmp_path):
    model = SpeechToText.from_pretrained(tiny_model)
    reports = []
    found = demo.transcribe_file(
        model, str(speech_file), ("asr", "st"), "en", "fr", lambda *r: reports.append(r)
    )
    assert reports[0][0] == 0 and reports[-1][0] == pytest.approx(1)
    assert reports == sorted(reports) and "s of audio" in reports[-1][1]
    (expected,) = model.transcribe([speech_file], language="en")
    assert found["asr"].result.text == expected.text and found["asr"].result.words
    files = demo.write_files(tmp_path, str(speech_file), found, "en", "fr")
    names = {Path(file).name for file in files}
    forms = ("txt", "srt", "vtt", "json")
    assert names == {f"agent-pass.{c}.{f}" for c in ("en", "fr") for f in forms}
    entry = json.loads((tmp_path / "agent-pass.en.json").read_text())
    assert entry["text"] == expected.text


def test_recording_without_samples_is_an_error(tiny_model, tmp_path):
    model = SpeechToText.from_pretrained(tiny_model)
    soundfile.write(tmp_path / "a.wav", [], 16000)
    with pytest.raises(UserError, match="no samples"):
        demo.transcribe_file(
            model, str(tmp_path / "a.wav"), ("asr",), "en", "fr", lambda *_: None
        )


def test_recordings_are_uploads_only(monkeypatch):
    """A request may name an address, which Gradio's own component downloads."""
    fetched, transcribed = [], []

    async def download(url, **_):
        fetched.append(url)

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", download)
    monkeypatch.setattr(demo, "transcribe_file", lambda _, s, *a: transcribed.append(s))
    prompts = SimpleNamespace(tasks={"asr"}, languages={"en": "English"})
    blocks = demo.make_page(SimpleNamespace(prompts=prompts), "tiny")
    address = blocks.launch(**demo.LIMITS, prevent_thread_lock=True)[1]
    try:
        for path in ("http://93.184.215.14/a.wav", "https://a.test/b", "/etc/passwd"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            content = {
                "data": [file, "Transcript", "en", "en"],
                "fn_index": 0,
                "session_hash": "x",
            }
            httpx2.post(f"{address}gradio_api/queue/join", json=content)
            with httpx2.stream(
                "GET", f"{address}gradio_api/queue/data?session_hash=x", timeout=30
            ) as events:
                found = [x for x in events.iter_lines() if "process_completed" in x]
            assert found and '"success":false' in found[0]
    finally:
        blocks.close()
    assert fetched == transcribed == []


def chromium() -> str:
    """Return the path of a Chromium; skip the test without one."""
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, PROGRAMS)), ""
    )
    if not found:
        pytest.skip("no Chromium on PATH or in CHROMIUM")
    return found


@pytest.fixture
def page(tiny_model, monkeypatch):
    """Return the page in Chromium, and the hosts that it sent requests to."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = chromium()
    transcribe_file = demo.transcribe_file

    def with_hostile_word(*arguments):
        found = transcribe_file(*arguments)
        for task, transcription in found.items():
            replaced = replace(transcription.result, **vars(result(HOSTILE, WORDS)))
            if task == "st":
                replaced = result("deux")
            found[task] = replace(transcription, result=replaced)
        return found

    monkeypatch.setattr(demo, "transcribe_file", with_hostile_word)
    model = SpeechToText.from_pretrained(tiny_model)
    blocks = demo.make_page(model, "tiny <model>")
    address = blocks.launch(**demo.LIMITS, **demo.LOOKS, prevent_thread_lock=True)[1]
    hosts: set[str | None] = set()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        tab = browser.new_page()
        tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        tab.goto(address)
        tab.get_by_role("button", name="Transcribe").wait_for()
        yield tab, hosts
        browser.close()
    blocks.close()


@pytest.mark.slow
def test_a_person_uploads_a_recording(page, speech_file, tmp_path):
    tab, hosts = page
    recording = tmp_path / f"{HOSTILE.replace('/', '')}.wav"
    soundfile.write(recording, load_audio(speech_file), 16000)
    tab.locator("input[type=file]").first.set_input_files(recording)
    tab.get_by_label("Output").click()
    tab.get_by_role("option", name="Transcript, then translation").click()
    tab.get_by_role("button", name="Transcribe").click()
    words = tab.locator(".speechllm button[title]")
    words.first.wait_for()
    assert words.all_inner_texts() == ["two", HOSTILE]  # shown, not run
    assert tab.title() == "tiny <model>" and tab.locator("img[src=x]").count() == 0
    assert words.first.get_attribute("title") == "confidence 25%"
    colours = [
        w.evaluate("e => getComputedStyle(e).backgroundColor") for w in words.all()
    ]
    assert colours == ["rgba(255, 140, 0, 0.75)", "rgba(255, 140, 0, 0)"]
    assert tab.get_by_role("button", name="deux").is_visible()

    words.first.click()
    player = "document.querySelector('.speechllm audio')"
    tab.wait_for_function(f"{player}.paused && {player}.currentTime >= 0.75")
    assert tab.evaluate(f"{player}.currentTime") < 1.5
    with tab.expect_download() as download:
        tab.locator("a[download$='.en.srt']").click()
    subtitles = Path(download.value.path()).read_text()
    assert "00:00:00,500 --> " in subtitles and "‹img src=x" in subtitles
    assert hosts - {None} == {"127.0.0.1"}  # None: of data URLs


@pytest.mark.slow
def test_a_file_without_audio_is_an_error_as_text(page, tmp_path):
    tab, _ = page
    recording = tmp_path / f"{HOSTILE.replace('/', '')}.wav"
    recording.write_bytes(b"no audio" * 100)
    tab.locator("input[type=file]").first.set_input_files(recording)
    tab.get_by_role("button", name="Transcribe").click()
    message = tab.get_by_test_id("toast-body")
    message.wait_for()
    assert tab.locator("img[src=x]").count() == 0
    assert "/tmp/" not in message.inner_text()
    assert "not a readable audio file" in message.inner_text()


@pytest.mark.slow
def test_a_person_records_with_the_microphone(page):
    tab, _ = page
    tab.get_by_label("Record audio").click()
    tab.get_by_role("button", name="Record", exact=True).click()
    tab.wait_for_timeout(1500)
    tab.get_by_role("button", name="Stop", exact=True).click()
    tab.get_by_role("button", name="Transcribe").click()
    tab.locator(".speechllm button[title]").first.wait_for()
