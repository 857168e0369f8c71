"""Command line of run.pl and slurm.pl, which is that of Kaldi's job runners.

    run.pl [--option value …] [JOB=1:N] <log file> <command> [argument …]
    run.pl [--option value …] --count gpus|cpus

With ``JOB=1:N`` the command runs N times; every word ``JOB`` in the log's name and in
the command is replaced by the job's number, but not in the folders of a path, which
may be called so by chance (``/data/JOB/text``, ``JOBS/text``). The command may contain
shell operators as separate words (``'|'``, ``'>'``); all other words are passed on
unchanged. ``--count`` prints how many GPUs or CPU cores a job can have.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

OPTIONS = {
    "gpu": "GPUs per job",
    "mem": "memory per job, such as 8G (slurm)",
    "num_threads": "CPU cores per job (slurm)",
    "num_nodes": "machines per job (slurm)",
    "max_jobs_run": "maximum number of parallel jobs",
    "name": "name of the job (slurm)",
    "time": "time limit, such as 24:00:00 (slurm)",
    "partition": "partition of the cluster (slurm)",
    "count": "gpus or cpus: print how many a job can have, and run nothing",
}
OPERATORS = {"|", "||", "&&", ";", "&", "<", ">", ">>", "2>", "2>>", "2>&1", "|&"}


@dataclass(frozen=True)
class Request:
    """A parsed command line; ``variable`` is None for a single job.

    With ``count`` (``gpus`` or ``cpus``) there is no command.
    """

    log: str
    command: list[str]
    variable: str | None = None
    first: int = 1
    last: int = 1
    options: dict[str, str] = field(default_factory=dict)
    count: str = ""

    @property
    def jobs(self) -> range:
        return range(self.first, self.last + 1)

    def number(self, name: str, default: int) -> int:
        value = self.options.get(name, str(default))
        if not value.isdigit():
            stop(f"--{name} needs a whole number, not '{value}'")
        return int(value)

    def log_of(self, job: int) -> Path:
        return Path(self.with_job(self.log, str(job)))

    def with_job(self, word: str, value: str) -> str:
        if self.variable is None:
            return word
        own = rf"(?<!\w){re.escape(self.variable)}(?!\w)(?![^\s/]*/)"
        return re.sub(own, lambda _: value, word)

    def shell_line(self, value: str, quoted: str | None = None) -> str:
        """Return the command as one line of bash, for one job.

        Args:
            value: job number.
            quoted: replacement of the number within single quotes; for a shell
                variable that is ``'"$NAME"'``.
        """
        words = []
        for word in self.command:
            if word in OPERATORS:
                words.append(word)
                continue
            word = "'" + word.replace("'", "'\"'\"'") + "'"
            words.append(self.with_job(word, quoted or value))
        return " ".join(words)


def runner() -> str:
    return Path(sys.argv[0]).name


def stop(message: str) -> None:
    print(f"{runner()}: error: {message}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str], more_options: Iterable[str] = ()) -> Request:
    """Parse a command line; exit with status 2 if it is invalid.

    Args:
        argv: the words after the program's name.
        more_options: names of options in addition to ``OPTIONS``.
    """
    names = [*OPTIONS, *sorted(set(more_options) - set(OPTIONS))]
    words = list(argv)
    if not words or words[0] in ("--help", "-h"):
        lines = [f"  --{name} <value>  {text}" for name, text in OPTIONS.items()]
        usage = (__doc__ or "").replace("run.pl [", f"{runner()} [", 1)
        print(usage + "\n" + "\n".join(lines))
        sys.exit(0 if words else 2)
    options: dict[str, str] = {}
    variable, first, last = None, 1, 1
    while words:
        word = words[0]
        span = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)(?::(\d+))?", word)
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            if name not in names:
                known = ", ".join(f"--{known}" for known in names)
                stop(f"unknown option '{word}'; there are: {known}")
            if len(words) < 2:
                stop(f"'{word}' needs a value")
            options[name] = words[1]
            del words[:2]
        elif span and variable is None:
            variable, first = span.group(1), int(span.group(2))
            last = int(span.group(3) or first)
            if not 1 <= first <= last:
                stop(f"'{word}' is not a range of job numbers; write JOB=1:N")
            del words[0]
        else:
            break
    count = options.pop("count", "")
    if count:
        if words or count not in ("gpus", "cpus"):
            stop("--count takes gpus or cpus, and no command follows")
        return Request("", [], options=options, count=count)
    if len(words) < 2:
        stop("a log file and a command are needed; --help shows the form")
    log, command = words[0], words[1:]
    request = Request(log, command, variable, first, last, options)
    if first < last and request.log_of(1) == request.log_of(2):
        stop(f"the log '{log}' must have {variable} in its name, or jobs share a log")
    return request


def report_failures(
    request: Request, failed: dict[int, int], notes: dict[int, str] | None = None
) -> None:
    """Print the failed jobs, their logs and the error of the first one.

    Args:
        request: the command line.
        failed: job to its status.
        notes: job to what else is known about its end.
    """
    count = len(request.jobs)
    head = "the job failed" if count == 1 else f"{len(failed)} of {count} jobs failed"
    for job, code in sorted(failed.items())[:5]:
        note = f" ({notes[job]})" if notes else ""
        print(
            f"{runner()}: {head}: status {code}{note}, log {request.log_of(job)}",
            file=sys.stderr,
        )
        head = "and"
    for line in reason(request.log_of(min(failed))):
        print(f"{runner()}: {line}", file=sys.stderr)


def reason(log: Path) -> list[str]:
    """Return the last three ``error:`` lines of a log, or else its last ten lines."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return [f"the log cannot be read: {error.strerror}"]
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("#", "progress: "))]
    errors = [line for line in lines if "error: " in line[:80]]
    return errors[-3:] or lines[-10:]


def write(path: Path, mode: str, text: str) -> None:
    """Write a text file; the OSError of a full disk names it."""
    try:
        with open(path, mode, encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def keep_other_file(log: Path) -> None:
    """Rename a file that is not a log of a job runner: ``<name>.previous``."""
    try:
        with open(log, "rb") as stream:
            head = stream.read(2)
    except FileNotFoundError:
        return
    if head in (b"", b"# ", b"\n#"):
        return
    kept, number = log.with_name(f"{log.name}.previous"), 1
    while os.path.lexists(kept):
        number += 1
        kept = log.with_name(f"{log.name}.previous.{number}")
    os.rename(log, kept)
    print(f"{runner()}: {log} is not a log; kept as {kept}", file=sys.stderr)


def watch_caller() -> Callable[[], bool]:
    """Raise KeyboardInterrupt on SIGTERM, and on SIGHUP unless nohup ignores it.

    Returns:
        A function that tells if this program's caller has ended, or the recipe whose
        process SPEECHLLM_PID (host:pid) gives.
    """

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupted)
    parent = os.getppid()
    return lambda: os.getppid() != parent or _recipe_gone()


def _recipe_gone() -> bool:
    """Return True if SPEECHLLM_PID is a process of this host that has ended."""
    host, _, pid = os.environ.get("SPEECHLLM_PID", "").rpartition(":")
    if not pid or host != socket.gethostname():
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state == "Z"


def run(main: Callable[[], int]) -> None:
    """Run a job runner and exit; print a full or read-only disk as one line."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # nobody reads the progress any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        stop(
            f"{place}{error.strerror or error}; free disk space, or choose a folder "
            "that can be written"
        )
