"""Run bad inputs and print a table of the outcomes by family.

    python test/badinput/bad_table.py --jobs 2
    python test/badinput/bad_table.py --family audio --match half --verbose

Every case runs in a fork of one process that has loaded PyTorch and a tiny model. A
case is right, or one of: traceback, silent (exit 0 without the right output), wrong
(another error than the expected one), hang, lost (a file of the user is missing or
changed), entered (planted code ran, or a connection was made).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import bad_base
from bad_case import (
    ENTERED,
    HANG,
    LOST,
    RIGHT,
    TRACEBACK,
    VERDICTS,
    WRONG,
    Case,
    Outcome,
    Place,
)

#: Hidden files that outputs keep: the marker, states of jobs and of a transcription.
KEPT = r"\.speechllm_output|\.\d+\.done|\.speechllm_transcribe\.jsonl"
FAMILIES = (
    "bad_audio",
    "bad_names",
    "bad_tables",
    "bad_configs",
    "bad_models",
    "bad_packs",
    "bad_options",
    "bad_outputs",
    "bad_arrays",
    "bad_corpora",
    "bad_trainings",
    "bad_decoding",
    "bad_serving",
)
NOBODY = 65534
SEED = 16  # of the sample


def all_cases() -> list[Case]:
    """Return the cases of all families, in a fixed order."""
    import importlib

    found = []
    for name in FAMILIES:
        found += importlib.import_module(name).cases()
    twice = [k for k, n in Counter((c.family, c.name) for c in found).items() if n > 1]
    if twice:
        raise ValueError(f"two cases have the name {twice[0]}")
    return found


def sample(cases: list[Case], count: int, seed: int = SEED) -> list[Case]:
    """Return ``count`` cases, evenly from all families and the same for one seed."""
    families: dict[str, list[Case]] = {}
    for case in cases:
        families.setdefault(case.family, []).append(case)
    generator = random.Random(seed)
    for group in families.values():
        generator.shuffle(group)
    chosen: list[Case] = []
    while len(chosen) < count and any(families.values()):
        for group in families.values():
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return chosen


def snapshot(root: Path) -> dict[str, tuple]:
    """Return kind, mode and content of every file below ``root`` by its path."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFREG and status.st_size < 1 << 26:
                with open(path, "rb") as stream:
                    content = hashlib.sha256(stream.read()).hexdigest()
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            found[key] = (kind, stat.S_IMODE(status.st_mode), content)
    return found


def times(model: Path) -> dict[Path, int]:
    """Return the modification time of each file of the shared model.

    Hidden files are left out: other cases write digests of its weights meanwhile.
    """
    return {
        path: path.stat().st_mtime_ns
        for path in model.rglob("*")
        if not path.name.startswith(".") and path.is_file()
    }


def losses(before: dict, after: dict, may_change: tuple[str, ...]) -> list[str]:
    """Return what is missing or changed, except files that may change."""
    found = []
    for name, entry in before.items():
        inner = name.removeprefix("work/")
        if any(fnmatch.fnmatch(inner, pattern) for pattern in may_change):
            continue
        if name not in after:
            found.append(f"{name} is gone")
        elif after[name] != entry:
            found.append(f"{name} is changed")
    return found


class Listener:
    """Socket on 127.0.0.1 that notices connections."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    def connected(self) -> bool:
        """Return True if something connected since the last call."""
        found = False
        while True:
            try:
                connection, _ = self.socket.accept()
            except BlockingIOError:
                return found
            connection.close()
            found = True


def run_case(case: Case, base: Path, model: Path, root: Path) -> tuple[str, str, float]:
    """Run a case below ``root``; return verdict, reason and seconds."""
    listener = Listener()
    for name in ("user", "temporary", "home"):
        (root / name).mkdir(parents=True)
    shutil.copytree(base, root / "work")
    for name in ("notes.txt", "secret.wav"):
        (root / "user" / name).write_text(f"{name} of the user\n")
    place = Place(root / "work", root / "user", model, listener.port, root / "planted")
    try:
        action = case.build(place)
    except Exception:
        return WRONG, "the case cannot be built: " + traceback.format_exc(), 0.0
    if case.user_id:
        for path in [root, *root.rglob("*")]:
            os.chown(path, case.user_id, case.user_id, follow_symlinks=False)
    before = snapshot(root)
    model_before = times(model)
    begin = time.monotonic()
    with tempfile.TemporaryFile() as stdin:
        stdin.write(case.stdin())
        stdin.seek(0)
        out, err = os.pipe(), os.pipe()  # pipes: a limit on files is not one on them
        child = os.fork()
        if child == 0:
            run_child(case, action, root, (stdin.fileno(), out[1], err[1]))
        os.close(out[1])
        os.close(err[1])
        status, texts = wait(child, case.seconds, (out[0], err[0]))
        seconds = time.monotonic() - begin
        left = end_group(child)
    outcome = Outcome(status if status is not None else -1, *texts, place)
    after = snapshot(root)
    lost = losses(before, after, case.may_change)
    if not model_before.items() <= times(model).items():
        lost.append("the shared model is changed")
    verdict, reason = judge(case, outcome, lost, listener.connected())
    if verdict == RIGHT and status is not None:
        stray = [
            name
            for name in after.keys() - before.keys()
            if Path(name).name.startswith(".")
            and not name.endswith((".flac", ".wav"))  # of an id that begins with a dot
            and not re.fullmatch(KEPT, Path(name).name)
            and not name.startswith("home")
        ]
        stray += [n for n in after.keys() - before.keys() if n.startswith("temporary/")]
        if stray:
            verdict, reason = WRONG, f"temporary files are left: {sorted(stray)[:3]}"
        elif left:
            verdict, reason = WRONG, "a process is left"
    listener.socket.close()
    if verdict != RIGHT:
        reason += f" | stderr: {outcome.err[-1500:]}"
    return verdict, reason, seconds


def judge(
    case: Case, outcome: Outcome, lost: list[str], connected: bool
) -> tuple[str, str]:
    """Return verdict and reason of an outcome."""
    if outcome.place.planted.exists():
        return ENTERED, "planted code ran"
    if connected:
        return ENTERED, "a connection was made"
    if lost:
        return LOST, "; ".join(lost[:5])
    if outcome.status == -1:
        return HANG, f"no end within {case.seconds:g} s"
    if outcome.status > 128 and outcome.status != 130:
        return TRACEBACK, f"killed by signal {outcome.status - 128}"
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        lines = [line for line in outcome.err.splitlines() if line.strip()]
        return TRACEBACK, lines[-1] if lines else ""
    try:
        problem = case.check(outcome)
    except Exception:
        problem = f"{WRONG}: the check failed: {traceback.format_exc()}"
    verdict, _, reason = problem.partition(": ")
    return (verdict, reason) if problem else (RIGHT, "")


def run_child(case: Case, action, root: Path, streams: tuple[int, ...]) -> None:
    """Run the command of a case in this process, a fork, and end it."""
    status = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
        os.chdir(root / "work")
        os.environ.update(
            HOME=str(root / "home"),
            SPEECHLLM_CACHE=str(root / "home" / "cache"),
            TMPDIR=str(root / "temporary"),
            HF_HUB_OFFLINE="1",
            PIP_NO_INDEX="1",
        )
        tempfile.tempdir = str(root / "temporary")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if case.limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit, case.limit))
        if case.user_id:
            os.setgroups([])
            os.setgid(case.user_id)
            os.setuid(case.user_id)
        if callable(action):
            from speechllm.utils.errors import run_main

            run_main(lambda: (action(), 0)[1])
        else:
            sys.argv = action
            sys.modules.pop(action[0], None)
            runpy.run_module(action[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def wait(
    child: int, seconds: float, pipes: tuple[int, ...]
) -> tuple[int | None, list[str]]:
    """Return the exit status of a child as a shell does, and the content of pipes.

    The status is None if the child did not end in time; then it is killed.
    """
    end = time.monotonic() + seconds
    contents = dict.fromkeys(pipes, b"")
    for pipe in pipes:
        os.set_blocking(pipe, False)

    def drain() -> None:
        for pipe in pipes:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(pipe, 1 << 16):
                    contents[pipe] += part

    status = None
    while status is None and time.monotonic() < end:
        drain()
        found, code = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(code)
            status = code if code >= 0 else 128 - code
        else:
            time.sleep(0.005)
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    drain()
    for pipe in pipes:
        os.close(pipe)
    return status, [content.decode("utf-8", "replace") for content in contents.values()]


def end_group(group: int) -> bool:
    """Return True if processes of the group are left after 3 s, and kill them."""
    for _ in range(30):
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True


def run_all(cases: list[Case], jobs: int, folder: Path) -> list[dict]:
    """Run cases in ``jobs`` processes; return a dict of each in the given order."""
    base, model = bad_base.prepare(folder)
    children = []
    for job in range(jobs):
        child = os.fork()
        if child == 0:
            try:
                with open(folder / f"job{job}.jsonl", "w") as lines:
                    for number in range(job, len(cases), jobs):
                        case = cases[number]
                        root = folder / f"case{number}"
                        verdict, reason, seconds = run_case(case, base, model, root)
                        result = {
                            "number": number,
                            "family": case.family,
                            "name": case.name,
                            "verdict": verdict,
                            "reason": reason,
                            "seconds": round(seconds, 2),
                        }
                        print(json.dumps(result), file=lines, flush=True)
                        shutil.rmtree(root, ignore_errors=True)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise RuntimeError("a process of the table died")
    found = [
        json.loads(line)
        for job in range(jobs)
        for line in (folder / f"job{job}.jsonl").read_text().splitlines()
    ]
    return sorted(found, key=lambda result: result["number"])


def markdown(results: list[dict]) -> str:
    """Return the table: a line per family, a column per verdict."""
    rows = {}
    for result in results:
        rows.setdefault(result["family"], Counter())[result["verdict"]] += 1
    rows["all"] = sum(rows.values(), Counter())
    lines = [f"| family | inputs | {' | '.join(VERDICTS)} |"]
    lines.append("| --- |" + " ---: |" * (len(VERDICTS) + 1))
    for name, counts in rows.items():
        cells = [name, counts.total(), *(counts[verdict] for verdict in VERDICTS)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the table; return 1 if a case is not right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="", help="families with this in the name")
    parser.add_argument("--match", default="", help="cases with this in the name")
    parser.add_argument("--sample", type=int, help="number of cases [all]")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of it [{SEED}]")
    parser.add_argument("--jobs", type=int, default=2, help="parallel processes [2]")
    parser.add_argument("--json", type=Path, help="outcome of each case to write")
    parser.add_argument("--verbose", action="store_true", help="print reasons")
    parser.add_argument("--list", action="store_true", help="print names and end")
    args = parser.parse_args()
    cases = [
        case
        for case in all_cases()
        if args.family in case.family and args.match in case.name
    ]
    if args.sample:
        cases = sample(cases, args.sample, args.seed)
    if args.list:
        print("\n".join(f"{case.family}: {case.name}" for case in cases))
        return 0
    # the system's folder and not $TMPDIR: other users must be able to enter it
    with tempfile.TemporaryDirectory(prefix="badinput-") as folder:
        os.chmod(folder, 0o755)
        results = run_all(cases, args.jobs, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    for result in results:
        if result["verdict"] != RIGHT:
            reason = result["reason"] if args.verbose else result["reason"][:300]
            print("{family}: {name}: {verdict}: ".format(**result) + reason)
    print(markdown(results))
    return int(any(result["verdict"] != RIGHT for result in results))


if __name__ == "__main__":
    sys.exit(main())
