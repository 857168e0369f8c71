"""Tables of the most costly errors of hand-made decode dirs."""

from __future__ import annotations

from speechllm.evaluation.error_tables import (
    errors_markdown,
    occurrences,
    phrase_costs,
    rank_utterances,
    word_costs,
)
from speechllm.evaluation.groups import Group
from speechllm.evaluation.recognition import word_errors

IDS = ["u1", "u2", "u3", "u4"]
REFERENCES = [
    "press the pound key", "the pound key", "seven", "thank you very much"
]  # fmt: skip
HYPOTHESES = ["press the round ski", "the round ski", "", "oh thank you very much"]


def test_neighbouring_errors_are_one_phrase():
    costs = phrase_costs(IDS, word_errors(REFERENCES, HYPOTHESES))
    found = {pair: (cost.errors, dict(cost.utterances)) for pair, cost in costs.items()}
    assert found == {
        ("pound key", "round ski"): (4, {"u1": 1, "u2": 1}),
        ("seven", ""): (1, {"u3": 1}),
        ("", "oh"): (1, {"u4": 1}),
    }


def test_utterances_are_ranked_by_their_errors():
    groups = [
        Group("asr", "en", "en", IDS, REFERENCES, HYPOTHESES),
        Group("asr", "ja", "ja", ["j"], ["はいそうです"], ["いえです"]),
        Group("st", "en", "fr", ["s"], ["deux"], ["trois"]),
    ]
    found = [(row[0], row[1], row[-1]) for row in rank_utterances(groups)]
    assert found == [
        ("j", "ja", 3),
        ("u1", "en", 2),
        ("u2", "en", 2),
        ("u3", "en", 1),
        ("u4", "en", 1),
    ]


def test_substitution_with_insertion_is_one_phrase():
    """quatorze -> c'est bon: a substitution and an insertion."""
    output = word_errors(["poste quatorze s'il"], ["poste c'est bon s'il"])
    (pair,) = phrase_costs(["a"], output).items()
    assert pair[0] == ("quatorze", "c'est bon") and pair[1].errors == 2


def test_errors_of_a_word_are_counted_against_its_occurrences():
    output = word_errors([*REFERENCES, "pound"], [*HYPOTHESES, "pound"])
    costs = word_costs([*IDS, "u5"], output)
    assert {word: cost.errors for word, cost in costs.items()} == {
        "pound": 2, "key": 2, "seven": 1, "": 1,
    }  # fmt: skip
    assert costs["pound"].hypotheses == {"round": 2}
    assert costs["seven"].hypotheses == {"": 1}
    assert occurrences(output)["pound"] == 3


def test_tables_of_a_recognition_group():
    text = errors_markdown([Group("asr", "en", "en", IDS, REFERENCES, HYPOTHESES)])
    lines = text.splitlines()
    assert "## Speech recognition (asr): en" in lines
    assert "6 errors in 12 words." in lines
    assert "| key | ski (2) | 2 | 2 | u1, u2 |" in lines
    assert "| pound key | round ski | 4 | 66.7 % | 2 | u1, u2 |" in lines
    assert "| ∅ | oh | 1 | 16.7 % | 1 | u4 |" in lines
    assert "| seven | ∅ | 1 | 16.7 % | 1 | u3 |" in lines
    worst = lines.index("### Utterances")
    assert lines[worst + 4] == (
        "| u1 | press the pound key | press the round ski | 2 | 4 |"
    )


def test_worst_translations_come_first_and_twenty_at_most():
    ids = [f"u{number:02}" for number in range(30)]
    hypotheses = ["bonjour monde"] * 29 + ["zzz"]
    group = Group("st", "en", "fr", ids, ["bonjour monde"] * 30, hypotheses)
    lines = errors_markdown([group]).splitlines()
    rows = [line for line in lines if line.startswith("| u")][1:]
    assert len(rows) == 20
    assert rows[0] == "| u29 | bonjour monde | zzz | 0.00 |"
    assert rows[1].endswith("| 100.00 |")


def test_joint_task_has_both_and_perfect_transcripts_no_table():
    group = Group("asr_st", "en", "fr", ["a"], ["bonjour"], ["bonsoir"])
    group.transcript = Group("asr", "en", "en", ["a"], ["hello"], ["hello"])
    text = errors_markdown([group])
    assert "No errors in 1 words." in text
    assert "| a | bonjour | bonsoir |" in text


def test_characters_are_joined_without_spaces():
    group = Group("asr", "ja", "ja", ["a"], ["今日は晴れ"], ["今日は雨"])
    text = errors_markdown([group])
    assert "2 errors in 5 characters." in text
    assert "| 晴れ | 雨 | 2 | 100.0 % | 1 | a |" in text
