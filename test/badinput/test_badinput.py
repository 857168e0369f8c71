"""Bad inputs: no traceback, nothing silent, nothing lost, nobody in.

The ordinary suite runs a sample; ``pytest -m badinput test/badinput`` runs all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bad_table
import pytest
from bad_case import (
    ENTERED,
    HANG,
    LOST,
    RIGHT,
    SILENT,
    TRACEBACK,
    WRONG,
    Case,
    Outcome,
    Place,
    passes,
    refused,
)

SAMPLE = 150
ROOT = Path(__file__).parents[2]


def run_table(folder: Path, *arguments: str) -> list[dict]:
    """Run the table in a process of its own; print it and return the outcomes."""
    results = folder / "results.json"
    command = [sys.executable, bad_table.__file__, "--json", str(results), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert results.exists(), done.stderr[-3000:]
    return json.loads(results.read_text())


def faults(results: list[dict]) -> list[str]:
    """Return a line for each outcome that is not right."""
    lines = []
    for result in results:
        if result["verdict"] != RIGHT:
            reason = result.pop("reason")[:300]
            lines.append("{family}: {name}: {verdict}: ".format(**result) + reason)
    return lines


@pytest.mark.slow
def test_sample_of_bad_inputs(tmp_path):
    results = run_table(tmp_path, "--sample", str(SAMPLE))
    assert len(results) == SAMPLE
    assert faults(results) == []


@pytest.mark.badinput
def test_all_bad_inputs(tmp_path):
    results = run_table(tmp_path)
    assert len(results) >= 1000
    assert faults(results) == []


def outcome(
    tmp_path: Path, status: int = 1, out: str = "", err: str = "error: a: b\n"
) -> Outcome:
    place = Place(tmp_path, tmp_path, tmp_path, 0, tmp_path / "planted")
    return Outcome(status, out, err, place)


@pytest.mark.parametrize(
    ("status", "err", "verdict"),
    [
        (1, "error: a: b\n", RIGHT),
        (2, "usage: x\npython -m speechllm.bin.x: error: a\n", RIGHT),
        (0, "error: a: b\n", SILENT),
        (0, "", SILENT),
        (1, "", WRONG),
        (1, "error: c\n", WRONG),
        (1, "error: a\nerror: a\n", WRONG),
        (1, "error: a\nmore\n", WRONG),
        (3, "error: a\n", WRONG),
        (1, "Traceback (most recent call last):\nValueError: a\n", TRACEBACK),
        (139, "", TRACEBACK),
        (-1, "", HANG),
    ],
)
def test_verdicts_of_a_refusal(tmp_path, status, err, verdict):
    case = Case("family", "name", lambda place: [], refused("a"))
    found = outcome(tmp_path, status, "", err)
    assert bad_table.judge(case, found, [], False)[0] == verdict
    assert bad_table.judge(case, found, ["x is gone"], False)[0] == LOST
    assert bad_table.judge(case, found, [], True)[0] == ENTERED
    (tmp_path / "planted").touch()
    assert bad_table.judge(case, found, [], False)[0] == ENTERED


def test_verdicts_of_an_accepted_input(tmp_path):
    case = Case("family", "name", lambda place: [], passes(lambda o: o.out))
    right = outcome(tmp_path, 0, "", "warning: x\n")
    wrong_output = outcome(tmp_path, 0, "2 s, not 3", "")
    assert bad_table.judge(case, right, [], False)[0] == RIGHT
    assert bad_table.judge(case, wrong_output, [], False)[0] == SILENT
    assert bad_table.judge(case, outcome(tmp_path), [], False)[0] == WRONG


def test_losses_are_found(tmp_path):
    for name in ("kept", "gone", "changed", "mode", "work/out"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    before = bad_table.snapshot(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_text("other")
    (tmp_path / "mode").chmod(0o600)
    (tmp_path / "work" / "out").write_text("as the user wants")
    (tmp_path / "new").write_text("new")
    after = bad_table.snapshot(tmp_path)
    found = bad_table.losses(before, after, ("out",))
    assert sorted(found) == ["changed is changed", "gone is gone", "mode is changed"]


def test_sample_is_the_same_and_has_all_families():
    cases = bad_table.all_cases()
    first, second = (bad_table.sample(cases, SAMPLE) for _ in range(2))
    assert [case.name for case in first] == [case.name for case in second]
    assert {case.family for case in first} == {case.family for case in cases}
    other = bad_table.sample(cases, SAMPLE, seed=17)
    assert len({case.name for case in first + other}) > 1.5 * SAMPLE
    assert len(cases) >= 1000


def test_long_table_is_deselected_visibly():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    assert "test_sample_of_bad_inputs" in listed and "1 deselected" in listed
    assert "test_all_bad_inputs" not in listed
    chosen = subprocess.run(
        [*command, "-m", "badinput"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert "test_all_bad_inputs" in chosen
