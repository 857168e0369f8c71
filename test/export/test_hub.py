"""Model card and upload, against a local server with the hub's protocol."""

from __future__ import annotations

import base64
import http.server
import json
import shutil
import threading

import pytest
from huggingface_hub import ModelCard

from speechllm import SpeechToText
from speechllm.export.hub import model_card, upload
from speechllm.utils.errors import UserError

ROW = {
    "set": "test", "task": "asr", "language": "en", "target_language": "en",
    "metric": "wer", "value": 9.87, "utterances": 50, "hypotheses_file": "x",
    "system": "joint", "decode": "decode",
}  # fmt: skip
ROWS = [
    ROW,
    ROW | {"metric": "rtf", "value": 0.5},
    ROW | {"task": "st", "target_language": "fr", "metric": "bleu", "value": 31.4},
]


class Hub(http.server.BaseHTTPRequestHandler):
    """The hub's answers to an upload; ``files`` has what was committed."""

    files: dict[str, bytes] = {}
    created: list[dict] = []

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else self.read_chunks()
        assert self.headers["Authorization"] == "Bearer hf_test" or "yaml" in self.path
        answer: dict = {}
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            answer = {"url": "http://127.0.0.1/me/mini"}
        elif self.path.endswith("/preupload/main"):
            answer["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            answer = {
                "commitUrl": "http://127.0.0.1/me/mini/commit/1",
                "commitOid": "1",
            }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """Run the server in place of the hub; return its class."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "created", [])
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for module in ("constants", "hf_api", "repocard"):
        name = f"huggingface_hub.{module}.ENDPOINT"
        monkeypatch.setattr(name, address, raising=False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_card_has_results_licence_and_base_models(tiny_model):
    card = ModelCard(model_card(tiny_model, ROWS, "me/mini", "apache-2.0"))
    assert card.data.license == "apache-2.0" and card.data.model_name == "mini"
    wer, bleu = card.data.eval_results
    assert (wer.task_type, wer.metric_type) == ("automatic-speech-recognition", "wer")
    assert (wer.dataset_name, wer.dataset_config, wer.metric_value) == (
        "test",
        "en",
        9.87,
    )
    assert (bleu.task_type, bleu.dataset_config) == ("translation", "en-fr")
    assert (bleu.metric_name, bleu.metric_value) == ("BLEU (decode)", 31.4)
    assert ModelCard(model_card(tiny_model, [], "me/mini")).data.eval_results is None


def test_stage_15_uploads_model_and_card(hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / ".hidden").write_text("mine")
    address = upload(folder, "me/mini", ROWS, private=True, license="mit")
    assert address == "http://127.0.0.1/me/mini/commit/1"
    assert hub.created[0]["name"] == "mini" and "private" in hub.created[0].values()
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    assert set(hub.files) == {str(path.relative_to(folder)) for path in paths}
    assert b"license: mit" in hub.files["README.md"]

    hub.files.clear()
    SpeechToText.from_pretrained(folder).push_to_hub("you/copy")
    assert hub.created[-1]["name"] == "copy" and "README.md" in hub.files
    assert hub.files["config.yaml"] == (tiny_model / "config.yaml").read_bytes()


def test_a_model_without_a_folder_is_not_pushed(tiny_model):
    model = SpeechToText.from_pretrained(tiny_model)
    model.folder = None
    with pytest.raises(UserError, match="from_pretrained only"):
        model.push_to_hub("me/mini")
