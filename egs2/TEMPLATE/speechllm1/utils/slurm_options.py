"""Options of slurm.pl as options of ``sbatch``, by the rules of ``conf/slurm.conf``.

The file has Kaldi's format (utils/parallel/slurm.pl); ``#`` begins a comment:

    command sbatch --account=my_project   # the program, and options of all jobs
    default gpu=0                         # an option that is not given
    option gpu=* --partition=gpu --gres=gpu:$0
    option gpu=0 --partition=cpu          # one value has precedence over *

``$0`` is the value. An option without a rule in the file has that of ``DEFAULTS``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
from pathlib import Path

CONFIG = Path("conf/slurm.conf")
DEFAULTS = """
command sbatch
option name=* --job-name=$0
option mem=* --mem=$0
option time=* --time=$0
option partition=* --partition=$0
option num_threads=* --cpus-per-task=$0
option num_nodes=* --nodes=$0 --ntasks-per-node=1
option gpu=* --gres=gpu:$0
option gpu=0
option max_jobs_run=*
"""


class ConfigError(Exception):
    """A line of ``conf/slurm.conf`` that cannot be used."""


class SlurmOptions:
    """The rules of ``conf/slurm.conf``, or the built-in ones without the file.

    Raises:
        ConfigError: a line is none of the above.
    """

    def __init__(self, path: Path = CONFIG) -> None:
        self.command: list[str] = []
        self.given: dict[str, str] = {}  # values of the options that are not given
        self.rules: dict[tuple[str, str], list[str]] = {}
        self._read(DEFAULTS, "built-in rules")
        if path.exists():
            self._read(path.read_text(encoding="utf-8"), str(path))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.rules}

    def _read(self, text: str, place: str) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                raise ConfigError(f"{place}:{number}: a quote is not closed") from None
            setting = words[1] if len(words) > 1 else ""
            name, found, value = setting.partition("=")
            is_setting = found and re.fullmatch("[a-z_]+", name)
            if not words:
                continue
            if words[0] == "command" and Path(setting).name == "sbatch":
                self.command = words[1:]
            elif words[0] == "default" and is_setting and len(words) == 2:
                self.given[name] = value
            elif words[0] == "option" and is_setting:
                self.rules[name, value] = words[2:]
            else:
                raise ConfigError(
                    f"{place}:{number}: '{line.strip()}' is not one of: command sbatch "
                    "…, option NAME=VALUE …, option NAME=* …, default NAME=VALUE"
                )

    def words(self, options: dict[str, str]) -> list[str]:
        """Return ``sbatch`` with its options for these options of slurm.pl."""
        words = list(self.command)
        for name, value in (self.given | options).items():
            rule = self.rules.get((name, value), self.rules.get((name, "*")))
            if rule is None:
                raise ConfigError(
                    f"{CONFIG} has no 'option {name}=*', only some values"
                )
            words += [word.replace("$0", value) for word in rule]
        return words


def count_in_partition(kind: str, words: list[str]) -> int:
    """Return the most GPUs, or the fewest CPUs, of a node of the jobs' partition.

    Args:
        kind: ``gpus`` or ``cpus``.
        words: ``sbatch`` with the options of the jobs. Without a partition, all count.

    Raises:
        OSError: ``sinfo`` is not installed.
        subprocess.CalledProcessError: ``sinfo`` has failed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-p", "--partition", default=os.environ.get("SBATCH_PARTITION"))
    partition = parser.parse_known_args(words[1:])[0].partition
    form = {"gpus": "%G", "cpus": "%c"}[kind]
    command = ["sinfo", "--noheader", f"--format={form}"]
    if partition:
        command.append(f"--partition={partition}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    if kind == "gpus":  # such as gpu:a100:4(S:0-1),mps:100
        found = re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", done.stdout)
        return max(map(int, found), default=0)
    return min(map(int, re.findall(r"\d+", done.stdout)), default=1)
