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
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from speechllm.data.examples import utterance_of
from speechllm.evaluation.comet import (
    INSTALLER,
    comet_model,
    comet_python,
    comet_scores,
)
from speechllm.text.joint_target import texts_of
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, normalize
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory

#: sacrebleu's tokenizer where the default (13a) does not split the text into words.
#: Characters for Japanese: nothing to install, and the signature says so.
BLEU_TOKENIZERS = {"ja": "char", "yue": "zh", "zh": "zh"}


@dataclass
class Group:
    """The examples of one task and language pair, in the order of their ids.

    Attributes:
        sources: what was truly said, where a translation's utterance has its
            transcript among the examples, else None; COMET wants it.
        transcript: of ``asr_st``: the same examples' transcripts, as recognition.
        malformed: of ``asr_st``: answers that could not be taken apart.
    """

    task: str
    source: str
    target: str
    ids: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    hypotheses: list[str] = field(default_factory=list)
    sources: list[str | None] = field(default_factory=list)
    transcript: Group | None = None
    malformed: int = 0

    @property
    def name(self) -> str:
        """``asr_en`` or ``st_en_fr``."""
        return "_".join([self.task, self.source] + [self.target] * (self.task != "asr"))


@dataclass
class Scores:
    """What one group's scoring yields.

    Attributes:
        rows: the corpus' figures, ready for ``scores.json``.
        header, table: the names and lines of ``scores.tsv``.
        alignment: the text of ``alignment.txt``.
    """

    rows: list[dict]
    header: list[str]
    table: list[list]
    alignment: str


# ---------------------------------------------------------------- reading


def read_texts(path: str | Path, collapse: bool = True) -> dict[str, str]:
    """Read ``<id> <text>`` lines in any order; the text may be empty.

    White space inside a text (tabs, ideographic spaces) becomes one space, unless
    ``collapse`` is false: a target of ``asr_st`` has a tab.

    Raises:
        UserError: the file is missing, is not UTF-8, or holds an id twice or a
            line without an id.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    texts: dict[str, str] = {}
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                fields = line.decode("utf-8").split(maxsplit=1)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 ({error.reason})"
                ) from None
            if not fields:
                raise UserError(f"{path}:{number}: empty line, want '<id> <text>'")
            if fields[0] in texts:
                raise UserError(f"{path}:{number}: id {fields[0]} stands here twice")
            text = fields[1].strip() if fields[1:] else ""
            texts[fields[0]] = " ".join(text.split()) if collapse else text
    return texts


def require_same_ids(
    expected: dict, found: dict, expected_path: Path, found_path: Path
) -> None:
    """Refuse two tables whose ids differ, naming the first id and both counts."""
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    if missing:
        raise UserError(
            f"{found_path}: {missing[0]} is missing ({len(missing)} of "
            f"{len(expected)} ids of {expected_path} are not in its {len(found)})"
        )
    if surplus:
        raise UserError(
            f"{found_path}: {surplus[0]} is not in {expected_path} ({len(surplus)} of "
            f"its {len(found)} ids are unknown there; {len(expected)} are expected)"
        )


def read_groups(
    examples: str | Path, hypotheses: str | Path, subset: bool = False
) -> list[Group]:
    """Read an example dir and its hypotheses and sort them into groups.

    Args:
        examples: folder with ``text`` (references) and ``utt2task``.
        hypotheses: file of ``<example id> <hypothesis>`` lines, in any order; beside
            it ``text.transcript`` with those of ``asr_st``, and ``flags``, if there
            is one, with ``malformed`` for the answers that were.
        subset: the hypotheses may be of more examples than these.

    Raises:
        UserError: ids differ between the files, a reference is empty, or a line of
            ``utt2task`` is not ``<id> <task> <source> <target>``.
    """
    examples, hypotheses = Path(examples), Path(hypotheses)
    if not hypotheses.is_file():
        raise UserError(f"{hypotheses}: no such file; finish the decoding first")
    references = read_texts(examples / "text", collapse=False)
    tasks = read_texts(examples / "utt2task")
    answers = read_texts(hypotheses)
    if not references:
        raise UserError(f"{examples / 'text'}: nothing in it to score against")
    require_same_ids(references, tasks, examples / "text", examples / "utt2task")
    if subset:
        answers = {i: text for i, text in answers.items() if i in references}
    require_same_ids(references, answers, examples / "text", hypotheses)
    transcripts, flags = {}, {}
    joint = {name: task for name, task in tasks.items() if task.startswith("asr_st ")}
    if joint:
        path = hypotheses.with_name("text.transcript")
        transcripts = read_texts(path)
        if subset:
            transcripts = {i: text for i, text in transcripts.items() if i in joint}
        require_same_ids(joint, transcripts, examples / "utt2task", path)
        if hypotheses.with_name("flags").exists():
            flags = read_texts(hypotheses.with_name("flags"))

    groups: dict[tuple, Group] = {}
    spoken: dict[str, str] = {}  # utterance → transcript
    for example in sorted(references):
        key = tuple(tasks[example].split())
        if len(key) != 3:
            raise UserError(
                f"{examples / 'utt2task'}: {example}: '{tasks[example]}' is not "
                "'<task> <source language> <target language>'"
            )
        texts = texts_of(key[0], references[example], f"{examples / 'text'}, {example}")
        if not all(texts):
            raise UserError(
                f"{examples / 'text'}: {example} has an empty reference; "
                "leave the example out or give its text"
            )
        group = groups.setdefault(key, Group(*key))
        group.ids.append(example)
        group.references.append(texts[-1])
        group.hypotheses.append(answers[example])
        if example in joint:
            if group.transcript is None:
                group.transcript = Group("asr", group.source, group.source)
            group.transcript.ids.append(example)
            group.transcript.references.append(texts[0])
            group.transcript.hypotheses.append(transcripts[example])
            group.malformed += "malformed" in flags.get(example, "").split()
        if group.task in ("asr", "asr_st"):
            spoken[utterance_of(example, group.task, group.target)] = texts[0]
    for group in groups.values():
        utterances = (utterance_of(i, group.task, group.target) for i in group.ids)
        group.sources = [spoken.get(utterance) for utterance in utterances]
    return [groups[key] for key in sorted(groups)]


def normalize_group(group: Group, metric: str) -> tuple[list[str], list[str]]:
    """References and hypotheses as ``speechllm.text.normalization.normalize`` leaves them.

    Raises:
        UserError: a reference has nothing left (it held only punctuation).
    """
    references = [normalize(text, group.target, metric) for text in group.references]
    hypotheses = [normalize(text, group.target, metric) for text in group.hypotheses]
    for example, before, after in zip(
        group.ids, group.references, references, strict=True
    ):
        if not after.strip():
            raise UserError(
                f"{example}: nothing is left of the reference '{before}' after "
                "normalisation; leave the example out"
            )
    return references, hypotheses


# ---------------------------------------------------------------- recognition


def percent(value: float) -> float:
    """A rate (1.0 = 100 %) in percent with two decimals."""
    return round(100 * value, 2)


def word_errors(references: list[str], hypotheses: list[str]):
    """Align words (against an empty hypothesis all are deleted): a ``WordOutput``."""
    import jiwer

    return jiwer.process_words(references, hypotheses)


def character_errors(references: list[str], hypotheses: list[str]):
    """Align characters, spaces between words included: a ``CharacterOutput``."""
    import jiwer

    return jiwer.process_characters(references, hypotheses)


def error_row(metric: str, output) -> dict:
    """The row of a micro-averaged error rate: all errors over all reference units.

    Args:
        metric: ``wer``, ``cer``, ``wer_raw`` or ``cer_raw``.
        output: what :func:`word_errors` or :func:`character_errors` gave.
    """
    rate = output.wer if metric.startswith("wer") else output.cer
    unit = "words" if metric.startswith("wer") else "characters"
    return {
        "metric": metric,
        "value": percent(rate),
        f"reference_{unit}": output.hits + output.substitutions + output.deletions,
        "substitutions": output.substitutions,
        "deletions": output.deletions,
        "insertions": output.insertions,
    }


def count_errors(alignment: list) -> tuple[int, int, int]:
    """Substitutions, deletions and insertions of one utterance's alignment."""
    counts = Counter()
    for chunk in alignment:
        reference_length = chunk.ref_end_idx - chunk.ref_start_idx
        hypothesis_length = chunk.hyp_end_idx - chunk.hyp_start_idx
        counts[chunk.type] += max(reference_length, hypothesis_length)
    return counts["substitute"], counts["delete"], counts["insert"]


def score_recognition(group: Group) -> Scores:
    """WER and CER, normalised and raw, with the alignment of the normalised words.

    Languages written without spaces have no word error rate (it would count whole
    sentences); there the characters are aligned.
    """
    words = normalize_group(group, "wer")
    characters = normalize_group(group, "cer")
    raw = group.references, group.hypotheses
    character_output = character_errors(*characters)
    rows = [
        error_row("cer", character_output),
        error_row("cer_raw", character_errors(*raw)),
    ]
    output, (references, hypotheses) = character_output, characters
    if group.source not in LANGUAGES_WITHOUT_SPACES:
        output, (references, hypotheses) = word_errors(*words), words
        rows[:0] = [
            error_row("wer", output),
            error_row("wer_raw", word_errors(*raw)),
        ]
    table = []
    for index, example in enumerate(group.ids):
        errors = sum(count_errors(output.alignments[index]))
        length = len(output.references[index])
        table.append(
            [
                example,
                errors,
                length,
                f"{100 * errors / length:.2f}",
                references[index],
                hypotheses[index],
            ]
        )
    unit = "characters" if group.source in LANGUAGES_WITHOUT_SPACES else "words"
    header = ["id", "errors", unit, "rate", "reference", "hypothesis"]
    return Scores(rows, header, table, recognition_alignment(group.ids, output))


def width(text: str) -> int:
    """Columns that a terminal gives the text (East Asian wide characters take two)."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def align_lines(reference: list[str], hypothesis: list[str], alignment: list) -> str:
    """Three lines: REF, HYP and what happened (S, D, I) below each other."""
    columns = []
    for chunk in alignment:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = {"substitute": "S", "delete": "D", "insert": "I"}.get(chunk.type, "")
        for index in range(max(len(left), len(right))):
            above = left[index] if index < len(left) else "*"
            below = right[index] if index < len(right) else "*"
            columns.append((above, below, mark))
    lines = []
    for row, title in enumerate(("REF:", "HYP:", "    ")):
        cells = [
            column[row] + " " * (max(map(width, column)) - width(column[row]))
            for column in columns
        ]
        lines.append(" ".join([title, *cells]).rstrip())
    return "\n".join(line for line in lines if line)


def recognition_alignment(ids: list[str], output) -> str:
    """The text of ``alignment.txt``: frequent errors, then utterances, worst first."""
    confusions: Counter = Counter()
    utterances = []
    for example, reference, hypothesis, alignment in zip(
        ids, output.references, output.hypotheses, output.alignments, strict=True
    ):
        substitutions, deletions, insertions = count_errors(alignment)
        errors = substitutions + deletions + insertions
        for chunk in alignment:
            left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                confusions.update(
                    f"{a} -> {b}" for a, b in zip(left, right, strict=True)
                )
            elif chunk.type == "delete":
                confusions.update(f"{a} -> *" for a in left)
            elif chunk.type == "insert":
                confusions.update(f"* -> {b}" for b in right)
        head = f"{example}: {errors} errors in {len(reference)}"
        if errors:
            head += f" ({substitutions} S, {deletions} D, {insertions} I)"
        lines = align_lines(reference, hypothesis, alignment)
        utterances.append((-errors, example, f"{head}\n{lines}\n"))
    total = output.substitutions + output.deletions + output.insertions
    length = output.hits + output.substitutions + output.deletions
    wrong = sum(1 for errors, _, _ in utterances if errors)
    parts = [
        f"{total} errors in {length}: {output.substitutions} S (substituted), "
        f"{output.deletions} D (deleted), {output.insertions} I (inserted); "
        f"{wrong} of {len(ids)} utterances have one\n"
    ]
    if confusions:
        ranked = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
        parts.append(
            "most frequent (reference -> hypothesis)\n"
            + "".join(f"{count:6d}  {pair}\n" for pair, count in ranked[:20])
        )
    return "\n".join(parts + [text for _, _, text in sorted(utterances)])


# ---------------------------------------------------------------- translation


def bleu_metric(language: str, **options):
    """sacrebleu's BLEU with the tokenizer that the target language asks for."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=BLEU_TOKENIZERS.get(language, "13a"), **options)


def chrf_metric():
    """sacrebleu's chrF2 (character 6-grams, beta 2)."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def ter_metric(language: str):
    """sacrebleu's TER, by characters where the language is written without spaces."""
    from sacrebleu.metrics import TER

    asian = language in LANGUAGES_WITHOUT_SPACES
    return TER(asian_support=asian, normalized=asian)


def sacrebleu_row(
    name: str, metric, references: list[str], hypotheses: list[str]
) -> dict:
    """The row of one corpus score (already in percent) with its signature."""
    value = metric.corpus_score(hypotheses, [references]).score
    return {
        "metric": name,
        "value": round(value, 2),
        "signature": str(metric.get_signature()),
    }


def translation_rows(group: Group) -> list[dict]:
    """BLEU, chrF and TER on the raw text; BLEU and chrF on the normalised text."""
    raw = group.references, group.hypotheses
    normalised = normalize_group(group, "wer")
    return [
        sacrebleu_row("bleu", bleu_metric(group.target), *raw),
        sacrebleu_row("chrf", chrf_metric(), *raw),
        sacrebleu_row("ter", ter_metric(group.target), *raw),
        sacrebleu_row("bleu_normalized", bleu_metric(group.target), *normalised),
        sacrebleu_row("chrf_normalized", chrf_metric(), *normalised),
    ]


def score_translation(group: Group) -> Scores:
    """Corpus scores, and BLEU (effective order) and chrF of every sentence."""
    bleu = bleu_metric(group.target, effective_order=True)
    chrf = chrf_metric()
    table, utterances = [], []
    for example, reference, hypothesis in zip(
        group.ids, group.references, group.hypotheses, strict=True
    ):
        sentence_bleu = bleu.sentence_score(hypothesis, [reference]).score
        sentence_chrf = chrf.sentence_score(hypothesis, [reference]).score
        figures = f"{sentence_bleu:.2f}", f"{sentence_chrf:.2f}"
        table.append([example, *figures, reference, hypothesis])
        text = f"{example}: BLEU {figures[0]}, chrF {figures[1]}\n"
        text += f"REF: {reference}\nHYP: {hypothesis}".rstrip() + "\n"
        utterances.append((sentence_chrf, example, text))
    header = ["id", "bleu", "chrf", "reference", "hypothesis"]
    alignment = "\n".join(text for _, _, text in sorted(utterances))
    return Scores(translation_rows(group), header, table, alignment)


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
