"""Models are loaded without running Python code of their folders."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import speechllm
from speechllm.models.llm import load_llm_tokenizer
from speechllm.pretrained.model_folder import NO_CODE, read_model_config
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError

ROOT = Path(speechllm.__file__).parent


def calls() -> list[tuple[str, ast.Call]]:
    """Return the calls of ``Auto….from_…`` and of processors, which contain others."""
    found = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node.func)
            if path.name == "model_folder.py" and text == "kind.from_pretrained":
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
            if text.startswith(("Auto", "WhisperProcessor")) and ".from_" in text:
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
    return found


def test_every_automatic_class_is_told_to_run_no_code():
    assert NO_CODE == {"trust_remote_code": False}
    places = calls()
    assert len(places) > 8
    for place, node in places:
        unpacked = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
        assert "NO_CODE" in unpacked, place


def test_no_other_value_of_the_option_occurs():
    for path in ROOT.rglob("*.py"):
        text = path.read_text("utf-8")
        assert "trust_remote_code=True" not in text, path
        values = text.count("trust_remote_code=False") + ("NO_CODE = {" in text)
        assert text.count("trust_remote_code") == values, path


@pytest.fixture
def planted(tmp_path, tiny_llm):
    """A model folder whose Python code would write a file."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llm, folder)
    code = f"open({str(tmp_path / 'entered')!r}, 'w')\n"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (folder / name).write_text(code)
    own = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
        "AutoTokenizer": ["tokenization_own.OwnTokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "auto_map": own}))
    return folder


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_code_of_a_known_type_is_ignored(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    assert read_model_config(planted).model_type
    load_llm_tokenizer(str(planted))
    assert not (tmp_path / "entered").exists()


def test_code_of_an_unknown_type_is_refused(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    change(planted / "config.json", model_type="own")
    with pytest.raises(UserError, match="Python code of its own, which is not run"):
        read_model_config(planted)
    change(planted / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    (planted / "tokenizer.json").rename(planted / "vocab.txt")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(planted)
    assert not (tmp_path / "entered").exists()
