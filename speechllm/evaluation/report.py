"""Report of all scores below an experiment folder: ``RESULTS.md``, ``RESULTS.json``.

``speechllm.evaluation.score`` writes the scores of a set to
``<exp>/<system>/<decode>/<set>/score_*/scores.json``; the names of system, decode dir
and set are taken from the path. Training curves are drawn from the TensorBoard files
that ESPnet's trainer writes to ``<exp>/<system>/tensorboard/{train,valid}``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

from speechllm.evaluation.bootstrap import SAMPLES, SEED
from speechllm.evaluation.system_comparison import compare_systems, comparison_section
from speechllm.evaluation.tables import METRICS, TASKS, markdown_table, row_figure
from speechllm.evaluation.training_curves import draw_training_curves
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open
from speechllm.utils.machine import machine

#: Metrics on normalised text.
NORMALIZED = ("wer", "cer", "wer_ctc", "cer_ctc", "bleu_normalized", "chrf_normalized")
NOT_RECORDED = "not recorded, scored with an earlier release"

FEW = 1000  # words or sentences of a small set

ERRORS = ("substitutions", "deletions", "insertions")
#: Fields of a row that count words, characters or errors, where it has them.
COUNTS = ("reference_words", "reference_characters", *ERRORS)


def collect_results(exp_root: str | Path) -> list[dict]:
    """Read every ``scores.json`` below ``exp_root``.

    Returns:
        Rows ``{set, task, language, target_language, metric, value, utterances,
        hypotheses_file, system, decode, …}``, sorted by task, set, languages and
        system. Error rates include their counts, sacrebleu's scores their signature,
        and scores on normalised text that of the ``normalizer``.

    Raises:
        UserError: there is no score below ``exp_root``, or a file is not a list of
            rows.
    """
    exp_root = Path(exp_root)
    rows = []
    for path in sorted(exp_root.glob("*/*/*/score_*/scores.json")):
        system, decode, set_name = path.relative_to(exp_root).parts[:3]
        try:
            scored = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(scored, list):
                raise TypeError(scored)
            for row in scored:
                _check_row(row)
                place = {
                    "set": set_name,
                    "task": row["task"],
                    "language": row["language"],
                    "target_language": row["target_language"],
                    "metric": row["metric"],
                    "value": row["value"],
                    "utterances": row["utterances"],
                    "hypotheses_file": str(path.parent.parent / "text"),
                    "system": system,
                    "decode": decode,
                }
                rows.append(place | row)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}: not a list of scores; score this set again (stage 13)"
            ) from None
    if not rows:
        raise UserError(
            f"{exp_root}: no scores below it "
            "(<system>/<decode>/<set>/score_*/scores.json); run stage 13 first"
        )
    metrics = list(METRICS)
    rows.sort(
        key=lambda row: (
            *result_key(row),
            metrics.index(row["metric"]) if row["metric"] in METRICS else len(METRICS),
            row["metric"],
        )
    )
    return rows


def _check_row(row: dict) -> None:
    """Raise KeyError, TypeError or ValueError if a row lacks fields or types."""
    texts = [row[name] for name in ("metric", "task", "language", "target_language")]
    texts += [row.get(name, "") for name in ("signature", "normalizer")]
    if row["metric"] == "rtf":
        texts.append(row["device"])
        for name in ("seconds", "audio_seconds", "timed_examples"):
            if not isinstance(row[name], (int, float)) or not math.isfinite(row[name]):
                raise ValueError(row)
    counts = [row["utterances"], *(row[name] for name in COUNTS if name in row)]
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(count) is int and count >= 0 for count in counts)
        or type(row["value"]) not in (int, float)
        or not math.isfinite(row["value"])
        or type(row.get("interval", 0)) not in (int, float)
        or not 0 <= row.get("interval", 0) < math.inf
    ):
        raise ValueError(row)


def result_key(row: dict) -> tuple[str, ...]:
    """Return the fields that identify one line of a results table."""
    names = ("task", "set", "language", "target_language", "system", "decode")
    return tuple(row[name] for name in names)


def results_table(rows: list[dict], task: str) -> str:
    """Return the table of one task: a line per system, set and language pair.

    Substitutions, deletions and insertions are those of the normalised WER, or of the
    CER for languages without WER.
    """
    rows = [row for row in rows if row["task"] == task]
    metrics = [name for name in METRICS if any(row["metric"] == name for row in rows)]
    metrics += sorted({row["metric"] for row in rows} - METRICS.keys())
    counted = any("substitutions" in row for row in rows)
    lines: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        lines.setdefault(result_key(row), {})[row["metric"]] = row
    header = ["system", "set", "language", "utterances"]
    if counted:
        header += ["reference", "sub", "del", "ins"]
    header += [METRICS.get(name, name) for name in metrics]
    table = []
    for key, scores in lines.items():
        _, set_name, source, target, system, decode = key
        language = source if task == "asr" else f"{source} → {target}"
        first = next(iter(scores.values()))
        utterances = f"{first['utterances']:,}"
        if first.get("dropped"):
            utterances += f" of {first['utterances'] + first['dropped']:,}"
        line = [f"{system}/{decode}", set_name, language, utterances]
        if counted:
            errors = scores.get("wer") or scores.get("cer") or {}
            if "reference_words" in errors:
                line.append(f"{errors['reference_words']} words")
            else:
                line.append(f"{errors.get('reference_characters', 0)} characters")
            for kind in ERRORS:
                line.append(errors.get(kind, ""))
        for name in metrics:
            line.append(row_figure(scores[name]) if name in scores else "")
        table.append(line)
    return markdown_table(header, table)


def timing_lines(rows: list[dict]) -> str:
    """Return one list item per decode dir that was timed, with times and device."""
    lines = {}
    for row in rows:
        if row["metric"] == "rtf":
            name = f"{row['system']}/{row['decode']} {row['set']}"
            lines[name] = (
                f"- {name}: {row['seconds']:.0f} s for {row['audio_seconds']:.0f} s of "
                f"{row['timed_examples']} examples; {row['device']}\n"
            )
    return "".join(lines.values())


def signature_lines(rows: list[dict]) -> str:
    """Return one list item per signature, with its metric and target languages."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.get("signature"):
            key = row["metric"], row["signature"]
            found.setdefault(key, set()).add(row["target_language"])
    return "".join(
        f"- {METRICS.get(metric, metric)} ({', '.join(sorted(languages))}): "
        f"`{signature}`\n"
        for (metric, signature), languages in found.items()
    )


def normalizer_lines(rows: list[dict]) -> str:
    """Return one list item per signature of a normaliser, with languages and systems.

    The systems are named where some were scored with another normaliser than others.
    """
    found: dict[str, dict[str, set[str]]] = {}  # signature -> language -> systems
    for row in rows:
        if row["metric"] in NORMALIZED:
            languages = found.setdefault(row.get("normalizer") or NOT_RECORDED, {})
            systems = languages.setdefault(row["target_language"], set())
            systems.add(f"{row['system']}/{row['decode']}")
    lines = ""
    for signature, languages in found.items():
        lines += f"- {', '.join(sorted(languages))}: `{signature}`"
        others = (found[other] for other in found if other != signature)
        if any(languages.keys() & other.keys() for other in others):
            lines += f" ({', '.join(sorted(set().union(*languages.values())))})"
        lines += "\n"
    return lines


def package_version(name: str) -> str:
    """Return the installed version of a package without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_hash() -> str:
    """Return the commit of this project's checkout and whether it has local changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"no git checkout (speechllm {package_version('speechllm')})"
    return commit + (" with local changes" if changed else "")


def environment() -> dict[str, str]:
    """Return date, versions and machine, in the order of the report."""
    return {
        "date": datetime.now().astimezone().strftime("%a %b %d %H:%M:%S %Z %Y"),
        "python version": platform.python_version(),
        "pytorch version": package_version("torch"),
        "espnet version": package_version("espnet"),
        "transformers version": package_version("transformers"),
        "speechllm git hash": git_hash(),
        "machine": machine(),
    }


def results_markdown(
    rows: list[dict],
    facts: dict[str, str],
    commands: list[str],
    pictures: dict[str, str],
    notes: list[str],
) -> str:
    """Return the text of ``RESULTS.md``.

    Args:
        rows: from :func:`collect_results`.
        facts: from :func:`environment`.
        commands: commands that produced the scores.
        pictures: system -> link to its training curves.
        notes: comparisons that were not possible.
    """
    parts = ["# RESULTS\n", "## Environment\n"]
    parts.append("".join(f"- {name}: `{value}`\n" for name, value in facts.items()))
    if commands:
        parts.append("Commands:\n\n" + "".join(f"    {line}\n" for line in commands))
    tasks = {row["task"]: None for row in rows}
    for task in sorted(tasks, key=lambda name: (list(TASKS) + [name]).index(name)):
        parts.append(f"## {TASKS.get(task, task)}\n")
        parts.append(results_table(rows, task))
    parts.append(
        "Error rates are in percent over the whole set (all errors over all reference "
        'words or characters). WER, CER and "norm." are on normalised text, all others '
        "on the text as it is. Sub, del and ins are counts.\n"
    )
    if any("interval" in row for row in rows):
        parts.append(
            "± is half the width of the 95 % interval: bootstrap over the utterances, "
            f"{SAMPLES} samples, seed {SEED}. It covers the choice of the utterances, "
            "not other speakers, recordings or trainings.\n"
        )
    if small := small_sets(rows):
        parts.append(
            f"Sets with fewer than {FEW:,} words or sentences, on which only large "
            f"differences are reliable: {', '.join(small)}.\n"
        )
    if section := comparison_section(rows, notes):
        parts.append(section)
    if normalizers := normalizer_lines(rows):
        parts.append(
            "Text normalisers (`speechllm`: lower case, no punctuation, numbers in "
            "words; `whisper`: as for figures published with Whisper's):\n\n"
            + normalizers
        )
    measured = {row["metric"] for row in rows}
    if "comet" in measured:
        parts.append("COMET is shown times 100.\n")
    elif "bleu" in measured:
        parts.append("COMET: not scored; `tools/install_comet.sh` installs it.\n")
    if signatures := signature_lines(rows):
        parts.append("Signatures of sacrebleu:\n\n" + signatures)
    if timings := timing_lines(rows):
        parts.append(
            "RTF, the real-time factor: seconds of decoding per second of speech, "
            "without loading the model and reading the audio, over all tasks of a "
            "decode dir:\n\n" + timings
        )
    if pictures:
        parts.append("## Training\n")
        parts += [f"![{name}]({link})\n" for name, link in pictures.items()]
    return "\n".join(parts)


def small_sets(rows: list[dict]) -> list[str]:
    """Return the sets and language pairs with few words or sentences, with their size.

    The size is in reference words for recognition, in characters for languages without
    spaces, and in sentences for translation.
    """
    with_words = {result_key(row) for row in rows if row["metric"] == "wer"}
    found = []
    for row in rows:
        languages = row["language"]
        if row["metric"] == "bleu":
            size, unit = row["utterances"], "sentences"
            languages += f" → {row['target_language']}"
        elif row["metric"] == "wer":
            size, unit = row.get("reference_words"), "words"
        elif row["metric"] == "cer" and result_key(row) not in with_words:
            size, unit = row.get("reference_characters"), "characters"
        else:
            continue
        if size is not None and size < FEW:
            found.append(f"{row['set']} {languages} ({size:,} {unit})")
    return list(dict.fromkeys(found))


def write_report(
    exp_root: str | Path,
    output: str | Path,
    commands: Sequence[str] = (),
    compare_with: str | Path | None = None,
) -> list[dict]:
    """Write ``<output>.md`` and ``<output>.json`` and draw the training curves.

    Args:
        exp_root: folder of the experiments.
        output: path without suffix, such as ``RESULTS``.
        commands: commands to list in the report.
        compare_with: system that all others are compared with, see
            :func:`~speechllm.evaluation.system_comparison.compare_systems`.

    Returns:
        The rows.

    Raises:
        UserError: as :func:`collect_results` and ``compare_systems``, or ``output`` is
            a folder's path.
    """
    exp_root = Path(exp_root)
    if os.path.basename(output) in ("", ".", ".."):
        raise UserError(f"--output {output}: give a name without suffix, as in RESULTS")
    output = Path(output)
    rows = collect_results(exp_root)
    notes = compare_systems(rows, exp_root, compare_with)
    pictures = {}
    for log_dir in sorted(exp_root.glob("*/tensorboard")):
        if picture := draw_training_curves(log_dir.parent):
            link = os.path.relpath(picture, output.parent)
            pictures[log_dir.parent.name] = link.replace(" ", "%20")
    text = results_markdown(rows, environment(), list(commands), pictures, notes)
    with atomic_open(output.parent / f"{output.name}.json", "w") as stream:
        json.dump(rows, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    with atomic_open(output.parent / f"{output.name}.md", "w") as stream:
        stream.write(text)
    return rows
