"""Scores of a decode dir: references and hypotheses in, tables of scores out.

Recognition is scored by word and character error rate (jiwer), translation by BLEU,
chrF and TER (sacrebleu, each with its signature) and by COMET where it is installed.
Error rates, BLEU and chrF are computed on raw text and on text normalised by a
normaliser (``speechllm.text.normalizers``), whose signature is in the row. Examples are
grouped by task, source and target language, listed in ``utt2task`` of the example dir.

Output, one folder per group below the decode dir (``score_asr_en``,
``score_st_en_fr``):

* ``scores.json``: a list of rows (see :func:`score_group`); ``interval`` is half the
  width of a score's 95 % interval (``speechllm.evaluation.bootstrap``),
* ``scores.tsv``: one line per example,
* ``alignment.txt``: each example with its reference, worst first.

``ERRORS.md`` of the decode dir lists the most costly errors of all groups
(``speechllm.evaluation.error_tables``).

Where decoding was timed (``rtf.json`` of the decode dir), each group has the row
``rtf`` with the real-time factor of the whole decode dir.

For the joint task ``asr_st``, transcripts (``text.transcript`` of the decode dir) are
scored as recognition and translations (``text``) as translation, both in the same
folder (``score_asr_st_en_fr``).

To add a metric, add its row in ``recognition.score_recognition`` or
``translation.score_translation``; to add a task, add its scorer to ``SCORERS``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from speechllm.evaluation.bootstrap import interval_field, ratio_samples
from speechllm.evaluation.comet import (
    INSTALLER,
    comet_model,
    comet_python,
    comet_scores,
)
from speechllm.evaluation.error_tables import errors_markdown
from speechllm.evaluation.groups import Group, Scores, read_groups
from speechllm.evaluation.recognition import percent, score_recognition
from speechllm.evaluation.translation import score_translation
from speechllm.text.normalizers import SPOKEN, Normalizer
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory, remove_directory
from speechllm.utils.io import atomic_open


def score_decode_dir(
    examples: str | Path, decode_dir: str | Path, normalizer: Normalizer = SPOKEN
) -> tuple[list[dict], list[str]]:
    """Score ``decode_dir/text`` against an example dir, group by group.

    Score folders of an earlier call are replaced; those of groups that no longer exist
    are removed, so that no report includes them.

    Args:
        examples: example dir.
        decode_dir: decode dir.
        normalizer: of the texts of normalised scores.

    Returns:
        The rows of all groups, and one sentence for each score that is missing.

    Raises:
        UserError: the ids differ; or COMET is installed and fails, in which case all
            other scores are written first.
    """
    decode_dir = Path(decode_dir)
    groups = read_groups(examples, decode_dir / "text")
    known = [group for group in groups if group.task in SCORERS]
    results = {group.name: score_group(group, normalizer) for group in known}
    left_out: list[str] = []
    failure = None
    try:
        left_out += add_comet(known, results)
    except UserError as error:
        failure = error
    try:
        add_timing(decode_dir / TIMING_FILE, known, results)
    except (ValueError, KeyError, TypeError):
        left_out.append(f"no real-time factor: {decode_dir / TIMING_FILE} is damaged")
    for old in decode_dir.glob("score_*"):
        if old.name.removeprefix("score_") not in results and old.is_dir():
            remove_directory(old, SCORES)
    for name, scores in results.items():
        write_scores(scores, decode_dir / f"score_{name}")
    if known:
        with atomic_open(decode_dir / "ERRORS.md") as stream:
            stream.write(errors_markdown(known, normalizer))
    if failure:
        raise failure
    left_out += [
        f"{group.name}: {len(group.ids)} examples of task '{group.task}' are not scored"
        for group in groups
        if group.task not in SCORERS
    ]
    return [row for scores in results.values() for row in scores.rows], left_out


def score_group(group: Group, normalizer: Normalizer = SPOKEN) -> Scores:
    """Score one group; every row gets the task, languages and number of examples."""
    scores = SCORERS[group.task](group, normalizer)
    for row in scores.rows:
        row.update(group_fields(group))
    return scores


def group_fields(group: Group) -> dict:
    """Return the fields that all rows of a group share."""
    fields = {
        "task": group.task,
        "language": group.source,
        "target_language": group.target,
        "utterances": len(group.ids),
    }
    return fields | ({"dropped": group.dropped} if group.dropped else {})


def score_joint(group: Group, normalizer: Normalizer = SPOKEN) -> Scores:
    """Score the transcripts as recognition and the translations as translation.

    The row ``malformed`` is the percentage of hypotheses that could not be split into
    transcript and translation.
    """
    assert group.transcript is not None, "read_groups fills it for asr_st"
    recognised = score_recognition(group.transcript, normalizer)
    translated = score_translation(group, normalizer)
    malformed = {
        "metric": "malformed",
        "value": percent(group.malformed / len(group.ids)),
        "malformed": group.malformed,
    }
    header = [
        recognised.header[0],
        *(f"transcript_{name}" for name in recognised.header[1:]),
        *translated.header[1:],
    ]
    return Scores(
        [*recognised.rows, *translated.rows, malformed],
        header,
        [[*a, *b[1:]] for a, b in zip(recognised.table, translated.table, strict=True)],
        f"TRANSCRIPTS\n\n{recognised.alignment}\n"
        f"TRANSLATIONS\n\n{translated.alignment}",
    )


#: task -> scorer
TIMING_FILE = "rtf.json"
SCORE_FILES = ("scores.json", "scores.tsv", "alignment.txt")
SCORES = FolderKind("folder of scores", SCORE_FILES, SCORE_FILES)
SCORERS = {"asr": score_recognition, "st": score_translation, "asr_st": score_joint}


def add_comet(groups: list[Group], results: dict[str, Scores]) -> list[str]:
    """Add COMET (times 100) to the scores of translations, if it is installed.

    Returns:
        One sentence for each group without a COMET score.

    Raises:
        UserError: COMET is installed and fails.
    """
    groups = [group for group in groups if group.task != "asr"]
    model = comet_model()
    if not groups or model is None:
        return []
    python = comet_python()
    if python is None:
        return [f"no COMET: it is not installed, {INSTALLER} installs it"]
    left_out = []
    for group in groups:
        pairs = zip(group.ids, group.sources, strict=True)
        missing = [i for i, source in pairs if source is None]
        if missing:
            left_out.append(
                f"{group.name}: no COMET: {missing[0]} has no transcript among the "
                f"examples; make asr:{group.source} examples too"
            )
    groups = [group for group in groups if None not in group.sources]
    if not groups:
        return left_out
    values, signature = comet_scores(
        [text or "" for group in groups for text in group.sources],
        [text for group in groups for text in group.hypotheses],
        [text for group in groups for text in group.references],
        model,
        python,
    )
    for group in groups:
        scores = results[group.name]
        own, values = values[: len(group.ids)], values[len(group.ids) :]
        mean = sum(own) / len(own)
        interval = interval_field(ratio_samples(own, [1] * len(own)), len(own))
        scores.rows.append(
            {"metric": "comet", "value": percent(mean), **interval}
            | {"signature": signature}
            | group_fields(group)
        )
        column = scores.header.index("chrf") + 1
        scores.header.insert(column, "comet")
        for line, value in zip(scores.table, own, strict=True):
            line.insert(column, f"{100 * value:.2f}")
    return left_out


def add_timing(path: Path, groups: list[Group], results: dict[str, Scores]) -> None:
    """Add the real-time factor of a decode dir, if it was measured, to each group.

    Raises:
        ValueError, KeyError, TypeError: the file is damaged.
    """
    if not path.exists():
        return
    timing = json.loads(path.read_text("utf-8"))
    seconds, audio = float(timing["seconds"]), float(timing["audio_seconds"])
    if not (seconds >= 0 and 0 < audio < math.inf and seconds < math.inf):
        raise ValueError(timing)
    row = {
        "metric": "rtf",
        "value": round(seconds / audio, 6),
        "seconds": seconds,
        "audio_seconds": audio,
        "timed_examples": int(timing["examples"]),
        "device": "; ".join(map(str, timing["devices"])),
    }
    for group in groups:
        results[group.name].rows.append(row | group_fields(group))


def write_scores(scores: Scores, folder: str | Path) -> None:
    """Write ``scores.json``, ``scores.tsv`` and ``alignment.txt``, all or none."""
    with atomic_directory(folder, SCORES) as temporary:
        rows = json.dumps(scores.rows, ensure_ascii=False, indent=1)
        lines = ["\t".join(scores.header)]
        lines += ["\t".join(map(str, line)) for line in scores.table]
        texts = (rows + "\n", "\n".join(lines) + "\n", scores.alignment)
        for name, text in zip(SCORE_FILES, texts, strict=True):
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
