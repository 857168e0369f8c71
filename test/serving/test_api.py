"""The OpenAI audio API, with its official client: results are those of a file alone."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from processes import wait_until
from served import RATE, SHORT, Served, running_server, wav

from speechllm import transcribe_long
from speechllm.audio.io import load_audio
from speechllm.inference.long_form import cutting_for
from speechllm.inference.output_formats import format_transcription, json_segments
from speechllm.serving import batcher as batcher_module
from speechllm.serving.batcher import Batcher
from speechllm.text.tasks import Task


class Detector:
    """Stand-in for ``LanguageDetector`` that finds the first of its languages."""

    def __init__(self, *languages: str):
        self.languages = list(languages)

    def __call__(self, samples: np.ndarray) -> tuple[str, float]:
        return self.languages[0], 0.9


@pytest.fixture(scope="module")
def served(model):
    with running_server(model) as found:
        yield found


def alone(model, content: bytes, tmp_path, **request):
    """Return the transcription of one file, without a server."""
    path = tmp_path / "alone.wav"
    path.write_bytes(content)
    return next(transcribe_long(model, [[load_audio(path)]], **{**SHORT, **request}))


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
def test_formats_equal_those_of_the_file_alone(served, model, lecture, tmp_path, form):
    expected = alone(model, lecture, tmp_path, language="en")
    found = served.client().audio.transcriptions.create(
        file=("a.wav", lecture),
        model="whisper-1",
        response_format=form,
        timestamp_granularities=["word", "segment"],
    )
    assert len(expected.result.passages) > 5
    if form in ("text", "srt", "vtt"):
        assert found == format_transcription("a", expected, form, "en")
        return
    assert found.text == expected.result.text
    if form == "verbose_json":
        assert (found.language, found.duration) == ("en", 38.566)
        segments = json_segments(expected.result)
        words = [word for segment in segments for word in segment["words"]]
        keys = ("id", "start", "end", "text")
        assert [{k: getattr(s, k) for k in keys} for s in found.segments] == [
            {k: s[k] for k in keys} for s in segments
        ]
        assert [(w.word, w.start, w.end) for w in found.words] == [
            (w["word"], w["start"], w["end"]) for w in words
        ]


def test_verbose_json_has_the_requested_granularities(served, prompt):
    for given, keys in (
        ([], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"words", "segments"}),
    ):
        data = {"timestamp_granularities[]": given} if given else {}
        found = served.post(prompt, response_format="verbose_json", **data).json()
        assert keys == {"words", "segments"} & set(found)


def test_streamed_deltas_add_up_to_the_text(served, model, lecture, tmp_path):
    expected = alone(model, lecture, tmp_path, language="en").result.text
    events = list(
        served.client().audio.transcriptions.create(
            file=io.BytesIO(lecture), model="tiny", stream=True
        )
    )
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == expected
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", expected)


def test_silence_is_an_empty_text(served):
    silence = wav(np.zeros(RATE, np.float32))
    assert served.post(silence).json() == {"text": ""}
    lines = served.post(silence, stream="true").text.split("\n\n")
    assert lines == ['data: {"type": "transcript.text.done", "text": ""}', ""]


def test_translation_into_english(served, model, prompt, tmp_path):
    request = {"task": "st", "language": "fr", "target_language": "en"}
    expected = alone(model, prompt, tmp_path, **request).result.text
    found = served.client().audio.translations.create(
        file=("a.wav", prompt), model="tiny"
    )
    assert found.text == expected
    found = served.client().audio.translations.create(
        file=("a.wav", prompt), model="tiny", response_format="verbose_json"
    )
    assert (found.text, found.language) == (expected, "fr")


@pytest.mark.parametrize("language", ["en", "fr"])
def test_only_the_default_language_of_a_translation_is_replaced(
    model, prompt, language
):
    with running_server(model, language=language) as served:
        for fields in ({"language": "en"}, {"languages[]": "en"}):
            response = served.post(prompt, path="translations", **fields)
            assert response.status_code == 400
            assert "has this task for fr; not for 'en'" in response.text
        for fields in ({}, {"language": "fr"}):
            response = served.post(prompt, path="translations", **fields)
            assert response.status_code == 200


def test_detected_language_that_is_not_translated_is_an_error(model, prompt):
    with running_server(model, language="auto") as served:
        for detector, status in ((Detector("en"), 400), (Detector("fr"), 200)):
            served.batcher.detect = detector
            response = served.post(prompt, path="translations")
            assert response.status_code == status
            if status == 400:
                assert "en was detected" in response.json()["error"]["message"]


def test_detected_language_has_its_own_task(model, speech):
    batcher = Batcher(model, model.options(SHORT), cutting_for(model), 3)
    batcher.detect = Detector("fr")
    tasks = {"en": Task("asr", "en", "en"), "fr": Task("st", "fr", "en")}
    job = batcher.job(tasks, [])
    batcher.transcribe(job, [speech])
    batcher.close()
    assert {piece.task for piece in job.recording.pieces} == {tasks["fr"]}


def test_language_of_a_request(served, model, prompt, tmp_path):
    expected = alone(model, prompt, tmp_path, language="fr").result.text
    found = served.post(prompt, language="fr", response_format="verbose_json").json()
    assert (found["text"], found["language"]) == (expected, "fr")
    for fields in ({}, {"language": "auto"}):
        found = served.client().audio.transcriptions.create(
            file=("a.wav", prompt), model="tiny", languages=["fr"], **fields
        )
        assert found.text == expected


def test_language_is_detected_among_those_of_a_request(model, prompt):
    with running_server(model) as served:
        fields = {"response_format": "verbose_json", "languages[]": ["fr", "en"]}
        response = served.post(prompt, **fields)
        assert response.status_code == 400
        assert "languages[]: detection needs" in response.json()["error"]["message"]
        served.batcher.detect = Detector("de", "fr", "en")
        assert served.post(prompt, **fields).json()["language"] == "fr"
        assert served.post(prompt, language="en", **fields).json()["language"] == "en"
        fields["languages[]"] = ["en", "de"]
        assert "not for 'de'" in served.post(prompt, **fields).text
        assert served.batcher.detect.languages == ["de", "fr", "en"]


def test_language_is_detected(model, prompt, monkeypatch):
    with running_server(model, language="auto") as served:
        served.batcher.detect = Detector("fr")
        found = served.post(prompt, response_format="verbose_json").json()
        assert found["language"] == "fr"
        assert found["text"] == served.post(prompt, language="fr").json()["text"]


def test_models_health_and_metrics(served):
    client = served.client()
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("whisper-1").id == "tiny"
    assert served.metric("speechllm_active_requests") == 0


def test_fifty_clients_get_the_texts_of_their_files(served, model, speech, tmp_path):
    clips = [wav(speech[: RATE + n * (len(speech) - RATE) // 50]) for n in range(50)]
    expected = [alone(model, clip, tmp_path, language="en") for clip in clips]
    before = served.metric("speechllm_batch_segments_count")
    start = threading.Barrier(50)

    def send(clip: bytes):
        client = served.client()
        start.wait()
        return client.audio.transcriptions.create(
            file=("a.wav", clip), model="tiny", response_format="verbose_json"
        )

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(send, clips))
    assert [f.text for f in found] == [e.result.text for e in expected]
    assert [f.duration for f in found] == [round(e.seconds, 3) for e in expected]
    assert len({f.text for f in found}) > 5
    batches = served.metric("speechllm_batch_segments_count") - before
    assert batches < 25  # of up to 8 segments


def test_hotwords_are_those_of_the_request(model, prompt, tmp_path):
    """The text is that of the file alone with the same hotwords."""
    lists = {
        "": [],
        "Asterisk, New  York": ["Asterisk", "New York"],
        "queue\r\nmailbox,\n": ["queue", "mailbox"],
    }
    bonus = {"hotword_bonus": 30.0}
    expected = {
        text: alone(
            model, prompt, tmp_path, language="en", hotwords=words, **bonus
        ).result.text
        for text, words in lists.items()
    }
    assert len(set(expected.values())) == 3

    def send(text: str, **fields: str) -> str:
        found = served.client().audio.transcriptions.create(
            file=("a.wav", prompt),
            model="tiny",
            extra_body={"hotwords": text} if text else None,
            **fields,
        )
        return found.text

    with running_server(model, **bonus) as served, ThreadPoolExecutor() as pool:
        sent = [*lists] * 4
        assert list(pool.map(send, sent)) == [expected[text] for text in sent]
        one, other = lists["Asterisk, New  York"]
        for keywords in (f"{one}, {other}", f"Glossary: {one},\n{other}."):
            assert send("", prompt=keywords) == expected["Asterisk, New  York"]
        assert send(one, prompt=other) == expected["Asterisk, New  York"]
        assert send("", keywords=[one, other] * 300) == expected["Asterisk, New  York"]


def test_batches_have_the_same_hotwords(model, prompt, monkeypatch):
    """Others wait for the next batch, first in it."""
    batches = []
    monkeypatch.setattr(
        Batcher, "_decode", lambda self, batch: batches.append([j for j, _ in batch])
    )
    monkeypatch.setattr(Batcher, "_report", lambda self, job: None)
    batcher = Batcher(model, model.options(SHORT), cutting_for(model), 3)
    tasks = {"en": model.request("asr", "en", None)}
    lists = ["a", "a", "b", "a", "a", "c", "b"]
    jobs = [batcher.job(tasks, ["en"], hotwords=[word]) for word in lists]
    with batcher.changed:
        for job in jobs:
            job.waiting.append(None)
            batcher.turns.append(job)
        batcher.changed.notify_all()
    batcher.close()
    numbers = [[jobs.index(job) for job in batch] for batch in batches]
    assert numbers == [[0, 1, 3], [2, 6], [4], [5]]


def test_free_memory_is_returned(model, prompt, lecture, monkeypatch):
    """When no segment waits, and every few batches."""
    returned = []
    monkeypatch.setattr(
        batcher_module, "return_free_memory", lambda: returned.append(1)
    )
    with running_server(model) as served:
        assert served.post(prompt).status_code == 200
        wait_until(lambda: returned)
    monkeypatch.setattr(batcher_module, "_BATCHES_BETWEEN_RETURNS", 1)
    returned.clear()
    with running_server(model, batch_size=1) as served:
        assert served.post(lecture).status_code == 200
        batches = served.metric("speechllm_batch_segments_count")
        wait_until(lambda: len(returned) == batches)


def test_long_recording_does_not_delay_short_ones(
    model, lecture, prompt, stopped, tmp_path
):
    finished: list[str] = []

    def send(served: Served, name: str, content: bytes) -> None:
        assert served.post(content).status_code == 200
        finished.append(name)

    with running_server(model, batch_size=2) as served, ThreadPoolExecutor() as pool:
        long = pool.submit(send, served, "long", lecture)
        while served.batcher.waiting < 2:
            pass
        short = pool.submit(send, served, "short", prompt)
        while len(served.batcher.turns) < 2:
            pass
        stopped.set()
        long.result(), short.result()
    assert finished == ["short", "long"]
