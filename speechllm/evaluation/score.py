"""Scores of a decoded set: references and hypotheses in, tables of numbers out.

Recognition is scored by word and character error rate (jiwer), translation by BLEU,
chrF and TER (sacrebleu, each with its signature); both on the raw text and on the
text that ``speechllm.text.normalization.normalize`` leaves. Everything is grouped by task, source
and target language, as ``utt2task`` of the example dir tells.

What is written below the decode dir, one folder per group
(``score_asr_en``, ``score_st_en_fr``):

* ``scores.json``: the list of rows (see :func:`score_group`),
* ``scores.tsv``: one line per utterance,
* ``alignment.txt``: each utterance with its reference, worst first.

Of the joint task, ``asr_st``, the transcripts (``text.transcript`` of the decode dir)
are scored as recognition and the translations (``text``) as translation, in one folder
(``score_asr_st_en_fr``).

Another measure is another function from references and hypotheses to rows, named in
``recognition_rows`` or ``translation_rows``; another task is another entry of
``SCORERS``.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from speechllm.evaluation.comet import (
    INSTALLER,
    comet_model,
    comet_python,
    comet_scores,
)
from speechllm.evaluation.groups import Group, read_groups
from speechllm.evaluation.recognition import Scores, percent, score_recognition
from speechllm.evaluation.translation import score_translation
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory

# ---------------------------------------------------------------- a decode dir


def score_joint(group: Group) -> Scores:
    """Recognition scores of the transcripts and translation scores of the translations.

    And ``malformed``, the share of answers that could not be taken apart.
    """
    heard, translated = score_recognition(group.transcript), score_translation(group)
    malformed = {
        "metric": "malformed",
        "value": percent(group.malformed / len(group.ids)),
        "malformed": group.malformed,
    }
    header = [
        heard.header[0],
        *(f"transcript_{name}" for name in heard.header[1:]),
        *translated.header[1:],
    ]
    return Scores(
        [*heard.rows, *translated.rows, malformed],
        header,
        [[*a, *b[1:]] for a, b in zip(heard.table, translated.table, strict=True)],
        f"TRANSCRIPTS\n\n{heard.alignment}\nTRANSLATIONS\n\n{translated.alignment}",
    )


#: task → scorer
SCORERS = {"asr": score_recognition, "st": score_translation, "asr_st": score_joint}


def score_group(group: Group) -> Scores:
    """Score one group; its rows gain task, languages and the number of utterances.

    Raises:
        UserError: a recognition example with two languages.
    """
    if group.task == "asr" and group.source != group.target:
        raise UserError(
            f"{group.ids[0]}: recognition (asr) from {group.source} into "
            f"{group.target}; a translation's task is st"
        )
    scores = SCORERS[group.task](group)
    for row in scores.rows:
        row.update(place_of(group))
    return scores


def place_of(group: Group) -> dict:
    """What every row of a group says of it."""
    return {
        "task": group.task,
        "language": group.source,
        "target_language": group.target,
        "utterances": len(group.ids),
    }


def add_comet(groups: list[Group], results: dict[str, Scores]) -> list[str]:
    """Add COMET (times 100) to the scores of the translations, where it is installed.

    Returns:
        One sentence for what has no COMET score.

    Raises:
        UserError: it is installed, and fails.
    """
    groups = [group for group in groups if group.task != "asr"]
    model = comet_model()
    if not groups or model is None:
        return []
    python = comet_python()
    if python is None:
        return [f"no COMET: it is not installed, {INSTALLER} does it"]
    left_out = []
    for group in groups:
        missing = [i for i, s in zip(group.ids, group.sources, strict=True) if not s]
        if missing:
            left_out.append(
                f"{group.name}: no COMET: {missing[0]} has no transcript among the "
                f"examples; make asr:{group.source} examples too"
            )
    groups = [group for group in groups if all(group.sources)]
    if not groups:
        return left_out
    columns = [
        [text for group in groups for text in getattr(group, name)]
        for name in ("sources", "hypotheses", "references")
    ]
    values, signature = comet_scores(*columns, model, python)
    for group in groups:
        scores = results[group.name]
        own, values = values[: len(group.ids)], values[len(group.ids) :]
        mean = sum(own) / len(own)
        scores.rows.append(
            {"metric": "comet", "value": percent(mean), "signature": signature}
            | place_of(group)
        )
        column = scores.header.index("chrf") + 1
        scores.header.insert(column, "comet")
        for line, value in zip(scores.table, own, strict=True):
            line.insert(column, f"{100 * value:.2f}")
    return left_out


def write_scores(scores: Scores, folder: str | Path) -> None:
    """Write ``scores.json``, ``scores.tsv`` and ``alignment.txt``, all or nothing."""
    with atomic_directory(folder) as temporary:
        rows = json.dumps(scores.rows, ensure_ascii=False, indent=1)
        lines = ["\t".join(scores.header)]
        lines += ["\t".join(map(str, line)) for line in scores.table]
        for name, text in (
            ("scores.json", rows + "\n"),
            ("scores.tsv", "\n".join(lines) + "\n"),
            ("alignment.txt", scores.alignment),
        ):
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")


def score_decode_dir(
    examples: str | Path, decode_dir: str | Path
) -> tuple[list[dict], list[str]]:
    """Score ``decode_dir/text`` against an example dir, group by group.

    Score folders of an earlier call are replaced; those of groups that are no longer
    there are removed, so that no report takes them for current.

    Returns:
        the rows of all groups, and one sentence for what was not scored.

    Raises:
        UserError: the ids differ, a reference is empty; or COMET is installed and
            fails: then all but COMET is written.
    """
    decode_dir = Path(decode_dir)
    groups = read_groups(examples, decode_dir / "text")
    known = [group for group in groups if group.task in SCORERS]
    results = {group.name: score_group(group) for group in known}
    left_out, failure = [], None
    try:
        left_out += add_comet(known, results)
    except UserError as error:
        failure = error
    for old in decode_dir.glob("score_*"):
        stale = old.name.removeprefix("score_") not in results
        if stale and re.fullmatch(r"score_[a-z_]+", old.name) and old.is_dir():
            shutil.rmtree(old)
    for name, scores in results.items():
        write_scores(scores, decode_dir / f"score_{name}")
    if failure:
        raise failure
    left_out += [
        f"{group.name}: {len(group.ids)} examples of task '{group.task}' are not scored"
        for group in groups
        if group.task not in SCORERS
    ]
    return [row for scores in results.values() for row in scores.rows], left_out
