"""References and hypotheses of a decode dir, grouped by task and language pair.

:func:`read_groups` reads an example dir and its hypotheses into :class:`Group` objects.
The scorers in ``recognition``, ``translation`` and ``score`` turn a group into
:class:`Scores`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from speechllm.data.examples import utterance_of
from speechllm.data.kaldi_table import Dropped, read_dropped
from speechllm.text.joint_target import split_target
from speechllm.text.normalizers import Normalizer
from speechllm.text.tasks import Task, task_of
from speechllm.utils.errors import UserError


@dataclass
class Group:
    """The examples of one task and language pair, sorted by id.

    Attributes:
        sources: reference transcripts, which COMET needs; None for an utterance whose
            transcript is not among the examples.
        transcript: transcripts of the same examples as a recognition group (task
            ``asr_st`` only).
        malformed: number of hypotheses that could not be split into transcript and
            translation (task ``asr_st`` only).
        dropped: utterances of the set that have no example (``dropped.tsv``).
        ctc_texts: CTC transcripts of the examples (task ``asr`` only); empty where the
            decoder did not record them.
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
    dropped: int = 0
    ctc_texts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the group's score folder, such as ``asr_en`` or ``st_en_fr``."""
        return Task(self.task, self.source, self.target).group


@dataclass
class Scores:
    """Scores of one group.

    Attributes:
        rows: corpus-level scores, the content of ``scores.json``.
        header: column names of ``scores.tsv``.
        table: lines of ``scores.tsv``, one per example.
        alignment: the content of ``alignment.txt``.
    """

    rows: list[dict]
    header: list[str]
    table: list[list]
    alignment: str


def read_groups(
    examples: str | Path, hypotheses: str | Path, subset: bool = False
) -> list[Group]:
    """Read an example dir and its hypotheses and group them by task and language pair.

    Args:
        examples: folder with ``text`` (references) and ``utt2task``.
        hypotheses: file of ``<example id> <hypothesis>`` lines in any order. Next to
            it lie ``text.transcript``, the transcripts of ``asr_st``, and optionally
            ``flags``, which marks ``malformed`` hypotheses.
        subset: allow hypotheses of examples that are not in ``examples``.

    Raises:
        UserError: ids differ between the files, or a line of ``utt2task`` is not
            ``<id> <task> <source> <target>``.
    """
    examples, hypotheses = Path(examples), Path(hypotheses)
    if not hypotheses.is_file():
        raise UserError(f"{hypotheses}: no such file; finish the decoding first")
    references = read_texts(examples / "text", collapse=False)
    tasks = read_texts(examples / "utt2task")
    outputs = read_texts(hypotheses)
    if not references:
        raise UserError(f"{examples / 'text'}: no reference to score against")
    require_same_ids(references, tasks, examples / "text", examples / "utt2task")
    if subset:
        outputs = {i: text for i, text in outputs.items() if i in references}
    require_same_ids(references, outputs, examples / "text", hypotheses)
    transcripts: dict[str, str] = {}
    flags: dict[str, str] = {}
    joint = {name: task for name, task in tasks.items() if task.startswith("asr_st ")}
    if joint:
        path = hypotheses.with_name("text.transcript")
        transcripts = read_texts(path)
        if subset:
            transcripts = {i: text for i, text in transcripts.items() if i in joint}
        require_same_ids(joint, transcripts, examples / "utt2task", path)
        if hypotheses.with_name("flags").exists():
            flags = read_texts(hypotheses.with_name("flags"))

    groups: dict[Task, Group] = {}
    spoken: dict[str, str] = {}  # utterance -> transcript
    for example in sorted(references):
        task = task_of(tasks[example], f"{examples / 'utt2task'}: {example}")
        texts = split_target(
            task.name, references[example], f"{examples / 'text'}, {example}"
        )
        group = groups.setdefault(task, Group(*task))
        group.ids.append(example)
        group.references.append(texts[-1])
        group.hypotheses.append(outputs[example])
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
    ctc_texts = read_ctc_texts(hypotheses.parent)
    for group in groups.values():
        spoken_group = group.transcript or group
        if spoken_group.task == "asr" and set(group.ids) <= ctc_texts.keys():
            spoken_group.ctc_texts = [ctc_texts[i] for i in group.ids]
    _count_dropped(list(groups.values()), read_dropped(examples))
    return [groups[key] for key in sorted(groups)]


def read_ctc_texts(decode_dir: Path) -> dict[str, str]:
    """Read the CTC transcripts that a decode dir recorded, by example id.

    Files of an earlier decoding with other settings are ignored, and damaged ones end
    at the damage.
    """
    texts: dict[str, str] = {}
    first = None
    for path in sorted(decode_dir.glob("hypotheses.*.jsonl")):
        with open(path, "rb") as stream, suppress(ValueError, KeyError, TypeError):
            settings = json.loads(stream.readline())["settings"]
            first = first or settings
            for line in stream if settings == first else ():
                entry = json.loads(line)
                if isinstance(entry.get("ctc_text"), str):
                    texts[entry["id"]] = entry["ctc_text"]
    return texts


def _count_dropped(groups: list[Group], dropped: list[Dropped]) -> None:
    """Count the utterances that each group lacks.

    In a set of several spoken languages, entries of ``dropped.tsv`` that name neither
    task nor language are not counted.
    """
    one_language = len({group.source for group in groups}) == 1

    def lacks(entry: Dropped, task: str, tasks: set[str], language: str) -> bool:
        if entry.detail in tasks:
            return entry.detail == task
        return entry.language == language if entry.language else one_language

    tasks = {str(Task(g.task, g.source, g.target)) for g in groups}
    for group in groups:
        task = str(Task(group.task, group.source, group.target))
        own = {utterance_of(i, group.task, group.target) for i in group.ids}
        missing = {e.id for e in dropped if lacks(e, task, tasks, group.source)}
        group.dropped = len(missing - own)


def read_texts(path: str | Path, collapse: bool = True) -> dict[str, str]:
    """Read ``<id> <text>`` lines in any order; the text may be empty.

    A byte-order mark at the head of the file is skipped.

    Args:
        path: the file.
        collapse: replace white space inside a text (tabs, ideographic spaces) by one
            space. Targets of ``asr_st`` contain a tab and must be read without.

    Raises:
        UserError: the file is missing, is not UTF-8, contains an id twice or a line
            without an id.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    texts: dict[str, str] = {}
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                encoding = "utf-8" if number > 1 else "utf-8-sig"
                fields = line.decode(encoding).split(maxsplit=1)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 ({error.reason})"
                ) from None
            if not fields:
                raise UserError(f"{path}:{number}: empty line, expected '<id> <text>'")
            if fields[0] in texts:
                raise UserError(f"{path}:{number}: id {fields[0]} is listed twice")
            text = fields[1].strip() if fields[1:] else ""
            texts[fields[0]] = " ".join(text.split()) if collapse else text
    return texts


def require_same_ids(
    expected: dict, found: dict, expected_path: Path, found_path: Path
) -> None:
    """Check that two tables have the same ids.

    Raises:
        UserError: they differ; names the first id and both counts.
    """
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


def normalize_group(
    group: Group, normalizer: Normalizer
) -> tuple[list[str], list[str]]:
    """Return the normalised references and hypotheses of a group.

    A reference of signs only (``♪ ♪``) becomes empty, and words of its hypothesis
    insertions.
    """
    references = [normalizer(text, group.target) for text in group.references]
    hypotheses = [normalizer(text, group.target) for text in group.hypotheses]
    return references, hypotheses
