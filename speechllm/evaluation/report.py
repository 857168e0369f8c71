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

from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open
from speechllm.utils.machine import machine

#: metric -> heading, in the order of the columns
METRICS = {
    "wer": "WER",
    "cer": "CER",
    "wer_raw": "WER raw",
    "cer_raw": "CER raw",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "comet": "COMET",
    "bleu_normalized": "BLEU norm.",
    "chrf_normalized": "chrF norm.",
    "malformed": "malformed %",
    "rtf": "RTF",
}

#: task -> title of its table
TASKS = {
    "asr": "Speech recognition (asr)",
    "st": "Speech translation (st)",
    "asr_st": "Transcript and translation in one (asr_st)",
}

#: Metrics on normalised text.
NORMALIZED = ("wer", "cer", "bleu_normalized", "chrf_normalized")
NOT_RECORDED = "not recorded, scored with an earlier release"

ERRORS = ("substitutions", "deletions", "insertions")
#: Fields of a row that count words, characters or errors, where it has them.
COUNTS = ("reference_words", "reference_characters", *ERRORS)

#: Statistics in the figure of training curves, one panel each.
CURVES = ("loss", "loss_att", "loss_ctc", "acc", "cer_ctc", "wer")


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
    ):
        raise ValueError(row)


def result_key(row: dict) -> tuple[str, ...]:
    """Return the fields that identify one line of a results table."""
    names = ("task", "set", "language", "target_language", "system", "decode")
    return tuple(row[name] for name in names)


def markdown_table(header: list[str], lines: list[list], left: int = 1) -> str:
    """Return a Markdown table.

    Args:
        header: column names.
        lines: cells of each line.
        left: number of leading columns that are aligned to the left; all others are
            aligned to the right.
    """
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *escaped])


def figure(metric: str, value: float) -> str:
    """Format percent with two decimals, a real-time factor with three digits."""
    return f"{value:.3g}" if metric == "rtf" else f"{value:.2f}"


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
            line.append(figure(name, scores[name]["value"]) if name in scores else "")
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


def epoch_curves(log_dir: str | Path) -> dict[str, dict[str, dict[int, float]]]:
    """Read the mean of each statistic over each epoch.

    ESPnet writes ``iter_epoch`` (the epoch's number) and the epoch's means at the same
    step; values at other steps belong to single iterations and are ignored. A resumed
    training repeats steps; their last value is used.

    Args:
        log_dir: ``tensorboard`` folder of an experiment, with ``train`` and ``valid``.

    Returns:
        ``{"train" | "valid": {statistic: {epoch: value}}}``; empty if no epoch is
        complete.
    """
    from tensorboard.backend.event_processing.event_accumulator import (
        SCALARS,
        EventAccumulator,
    )

    scalars: dict[str, dict[str, list]] = {}
    for split in ("train", "valid"):
        folder = Path(log_dir) / split
        scalars[split] = {}
        if folder.is_dir():
            events = EventAccumulator(
                str(folder), size_guidance={SCALARS: 0}, purge_orphaned_data=False
            ).Reload()
            for name in events.Tags()[SCALARS]:
                scalars[split][name] = events.Scalars(name)
    steps: dict[int, int] = {}
    for event in scalars["train"].get("iter_epoch", []):
        epoch = int(event.value)
        steps = {old: step for old, step in steps.items() if old < epoch}
        steps[epoch] = event.step
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for split, statistics in scalars.items():
        for name, events in statistics.items():
            if name == "iter_epoch":
                continue
            # ESPnet writes NaN for statistics that a training does not have
            last = {e.step: e.value for e in events if not math.isnan(e.value)}
            points = {
                epoch: last[step] for epoch, step in steps.items() if step in last
            }
            if points:
                curves.setdefault(split, {})[name] = points
    return curves


def draw_training_curves(exp_dir: str | Path) -> Path | None:
    """Draw ``training_curves.png``: a panel per statistic with train and valid curves.

    Returns:
        Path of the figure; None if there is nothing to draw.
    """
    exp_dir = Path(exp_dir)
    curves = epoch_curves(exp_dir / "tensorboard")
    names = [name for name in CURVES if any(name in curves[split] for split in curves)]
    if not names:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(exp_dir.name)
    for position, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, position)
        for split, style in (("train", "o-C0"), ("valid", "s-C1")):
            points = curves.get(split, {}).get(name, {})
            if points:
                axes.plot(*zip(*points.items()), style, ms=3, label=split)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    picture = exp_dir / "training_curves.png"
    with atomic_open(picture, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)
    return picture


def results_markdown(
    rows: list[dict],
    facts: dict[str, str],
    commands: list[str],
    pictures: dict[str, str],
) -> str:
    """Return the text of ``RESULTS.md``.

    Args:
        rows: from :func:`collect_results`.
        facts: from :func:`environment`.
        commands: commands that produced the scores.
        pictures: system -> link to its training curves.
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


def write_report(
    exp_root: str | Path, output: str | Path, commands: Sequence[str] = ()
) -> list[dict]:
    """Write ``<output>.md`` and ``<output>.json`` and draw the training curves.

    Args:
        exp_root: folder of the experiments.
        output: path without suffix, such as ``RESULTS``.
        commands: commands to list in the report.

    Returns:
        The rows.

    Raises:
        UserError: as :func:`collect_results`, or ``output`` is a folder's path.
    """
    exp_root = Path(exp_root)
    if os.path.basename(output) in ("", ".", ".."):
        raise UserError(f"--output {output}: give a name without suffix, as in RESULTS")
    output = Path(output)
    rows = collect_results(exp_root)
    pictures = {}
    for log_dir in sorted(exp_root.glob("*/tensorboard")):
        if picture := draw_training_curves(log_dir.parent):
            link = os.path.relpath(picture, output.parent)
            pictures[log_dir.parent.name] = link.replace(" ", "%20")
    text = results_markdown(rows, environment(), list(commands), pictures)
    with atomic_open(output.parent / f"{output.name}.json", "w") as stream:
        json.dump(rows, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    with atomic_open(output.parent / f"{output.name}.md", "w") as stream:
        stream.write(text)
    return rows
