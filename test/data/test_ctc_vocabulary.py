"""CTC vocabulary in ESPnet's order, and sizes that are impossible."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import sentencepiece

from speechllm.bin.build_vocabulary import main
from speechllm.data.ctc_vocabulary import (
    build_bpe_vocabulary,
    build_character_vocabulary,
    sample_lines,
)
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.utils.errors import UserError

WORDS = [a + b for a in ("wal", "tal", "bar", "loo", "pic", "wor") for b in "kstdnm"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text_ctc"
    path.write_text("a hello you\nb good bye\nc ça va\n", encoding="utf-8")
    return path


def test_characters_are_sorted_by_frequency(text, tmp_path):
    tokens = build_character_vocabulary([text], tmp_path / "char")
    assert tokens[:5] == ["<blank>", "<unk>", "o", "<space>", "a"]
    assert tokens[-1] == "<sos/eos>"
    assert set(tokens[2:-1]) == set("hellyougdbeçav") | {"<space>"}
    written = (tmp_path / "char" / "tokens.txt").read_text(encoding="utf-8")
    assert written.splitlines() == tokens
    often = build_character_vocabulary([text], tmp_path / "char", 3)  # o, space
    assert often == [*tokens[:4], "<sos/eos>"]
    with pytest.raises(UserError, match="no character occurs 30 times"):
        build_character_vocabulary([text], tmp_path / "none", 30)


def test_more_text_with_the_same_characters_keeps_their_order(text, tmp_path):
    """A model that was trained with the list can be trained further."""
    tokens = build_character_vocabulary([text], tmp_path / "char")
    more = tmp_path / "more"
    more.write_text("a vvvvvvv\n", encoding="utf-8")
    assert build_character_vocabulary([more, text], tmp_path / "other")[2] == "v"
    assert build_character_vocabulary([more, text], tmp_path / "char") == tokens
    more.write_text("a vvvvvvv z\n", encoding="utf-8")
    assert build_character_vocabulary([more, text], tmp_path / "char")[2] == "v"


def test_all_characters_of_a_japanese_corpus_have_a_label(tmp_path, capsys):
    """CSJ has 2,880 characters; 500 were kept."""
    kanji = [chr(0x4E00 + number) for number in range(2880)]
    (tmp_path / "train").write_text(f"a {''.join(kanji)}\n", encoding="utf-8")
    (tmp_path / "dev").write_text("a 一丁 龥一\nb 一一一一\n", encoding="utf-8")
    tables = [str(tmp_path / name) for name in ("train", "dev")]
    main(
        ["--text", tables[0], "--output", str(tmp_path / "out"), "--coverage", *tables]
    )
    tokens, train, dev = capsys.readouterr().out.splitlines()
    assert tokens.endswith("2883 tokens")
    assert train.endswith("train: 100.00 % of 2880 characters have a label")
    assert dev == (
        f"warning: coverage of {tables[1]}: 87.50 % of 8 characters have a label; "
        "without: 1 different ones, such as 龥"
    )


def test_bpe_pieces_are_in_the_token_list(text, tmp_path):
    tokens = build_bpe_vocabulary([text], tmp_path / "bpe", 22)
    assert len(tokens) == 22
    assert (tokens[:2], tokens[-1]) == (["<blank>", "<unk>"], "<sos/eos>")
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "bpe" / "bpe.model"))
    pieces = model.encode("hello ça", out_type=str)
    assert set(pieces) <= set(tokens)
    assert model.decode(pieces) == "hello ça"


def test_unigram_pieces_and_a_sample_of_the_sentences(tmp_path):
    lines = [
        f"u{n:03d} {w}s the {w}ing of all {w}ed\n" for n, w in enumerate(5 * WORDS)
    ]
    text = tmp_path / "text_ctc"
    text.write_text("".join(lines), encoding="utf-8")
    arguments = ["--text", str(text), "--type", "bpe", "--size", "40"]
    found = []
    for options in ([], ["--bpemode", "unigram"], ["--input_sentence_size", "101"]):
        for _ in range(2):
            main([*arguments, *options, "--output", str(tmp_path / "out")])
            found.append((tmp_path / "out/tokens.txt").read_text("utf-8").splitlines())
    assert found[::2] == found[1::2]  # the same each time
    whole, unigram, sample = found[::2]
    assert len(whole) == len(unigram) == 40
    assert whole != unigram and whole != sample
    program = [sys.executable, "-m", "speechllm.bin.build_vocabulary", *arguments]
    program += ["--input_sentence_size", "101", "--output", str(tmp_path / "other")]
    subprocess.run(program, check=True, capture_output=True)
    other = (tmp_path / "other/tokens.txt").read_text("utf-8").splitlines()
    assert other == sample  # also in another process
    main([*arguments, "--bpemode", "unigram", "--output", str(tmp_path / "out")])
    model = str(tmp_path / "out/bpe.model")
    trainer = sentencepiece.SentencePieceProcessor(model_file=model)
    labels = CTCTokenizer(unigram, model)("walks the talking")
    assert trainer.decode([unigram[label] for label in labels]) == "walks the talking"


@pytest.mark.parametrize(
    ("size", "message"),
    [(5, "fewer than the texts have characters"), (5000, "at most")],
)
def test_impossible_sizes_are_errors(text, tmp_path, size, message):
    with pytest.raises(UserError, match=message):
        build_bpe_vocabulary([text], tmp_path / "bpe", size)
    assert not (tmp_path / "bpe").exists()


def test_empty_tables_are_an_error(tmp_path):
    (tmp_path / "text").write_text("a\nb\n")
    for build in (build_character_vocabulary, build_bpe_vocabulary):
        with pytest.raises(UserError, match="no text to build tokens from"):
            build([tmp_path / "text"], tmp_path / "out", 30)


def test_command_line(text, tmp_path, capsys):
    arguments = ["--text", str(text), "--output", str(tmp_path / "out")]
    main(arguments)
    assert "16 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs --size"):
        main([*arguments, "--type", "bpe"])
    with pytest.raises(UserError, match="--size is for bpe"):
        main([*arguments, "--size", "9"])


def test_each_line_is_sampled_with_the_same_probability():
    assert sample_lines("abc", 3) == sample_lines("abc", 9) == list("abc")
    found = sample_lines(map(str, range(50_000)), 5000)
    assert len(set(found)) == 5000
    tenths = Counter(int(line) // 5000 for line in found)
    assert sorted(tenths) == list(range(10))
    assert all(abs(count - 500) < 100 for count in tenths.values())
    assert found == sample_lines(map(str, range(50_000)), 5000)
