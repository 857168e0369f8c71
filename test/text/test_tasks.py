"""Tasks: their specifications, their values in ``utt2task`` and their names."""

from __future__ import annotations

import pytest

from speechllm.data.examples import read_utt2task
from speechllm.text.tasks import Task, parse_task, task_of
from speechllm.utils.errors import UserError


@pytest.mark.parametrize(
    ("specification", "value", "group", "output", "has_transcript"),
    [
        ("asr:en", "asr en en", "asr_en", "en", True),
        ("st:en:fr", "st en fr", "st_en_fr", "fr", False),
        ("asr_st:en:fr", "asr_st en fr", "asr_st_en_fr", "en", True),
    ],
)
def test_specification_and_table_value_give_the_same_task(
    specification, value, group, output, has_transcript
):
    task = parse_task(specification)
    assert task == task_of(value, "utt2task")
    assert str(task) == value
    assert task.group == group
    assert task.output_language == output
    assert task.has_transcript is has_transcript
    assert tuple(task) == tuple(value.split())  # digests of decode dirs depend on it


@pytest.mark.parametrize("value", ["", "asr en", "asr en en en"])
def test_malformed_table_values_name_their_place(value):
    with pytest.raises(UserError, match="utt2task, u1: expected '<task> <source"):
        task_of(value, "utt2task, u1")


@pytest.mark.parametrize(
    "value",
    ["asr ../../x ../../x", "st en ..", "../asr en en", "asr /etc /etc", "asr e\0n en",
     "asr én én", "st en fr/..", "asr e e", "asr -rf en", "a" * 33 + " en en"],
)  # fmt: skip
def test_fields_that_could_leave_a_folder_are_refused(value):
    with pytest.raises(UserError, match=r"utt2task, u1: "):
        task_of(value, "utt2task, u1")
    specification = ":".join(value.split()[:2])
    with pytest.raises(UserError, match=r"task "):
        parse_task(specification)


@pytest.mark.parametrize("language", ["en", "yue", "zh-CN", "zh_Hant_TW", "en-x-a"])
def test_language_codes_are_accepted(language):
    assert parse_task(f"asr:{language}") == Task("asr", language, language)


def test_utt2task_is_read(tmp_path):
    (tmp_path / "utt2task").write_text("a st en fr\nb asr en en\n")
    assert read_utt2task(tmp_path) == {
        "a": Task("st", "en", "fr"),
        "b": Task("asr", "en", "en"),
    }
    (tmp_path / "utt2task").write_text("a st en\n")
    with pytest.raises(UserError, match="utt2task, a: expected"):
        read_utt2task(tmp_path)
    (tmp_path / "utt2task").write_text("")
    with pytest.raises(UserError, match="no example"):
        read_utt2task(tmp_path)
