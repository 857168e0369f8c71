"""CTC vocabulary in ESPnet's order, and sizes that are impossible."""

from __future__ import annotations

import pytest
import sentencepiece

from speechllm.bin.build_vocabulary import main
from speechllm.data.ctc_vocabulary import (
    build_bpe_vocabulary,
    build_character_vocabulary,
)
from speechllm.utils.errors import UserError


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
    assert build_character_vocabulary([text], tmp_path / "char", 6) == [
        *tokens[:5],
        "<sos/eos>",
    ]


def test_bpe_pieces_are_in_the_token_list(text, tmp_path):
    tokens = build_bpe_vocabulary([text], tmp_path / "bpe", 22)
    assert len(tokens) == 22
    assert (tokens[:2], tokens[-1]) == (["<blank>", "<unk>"], "<sos/eos>")
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "bpe" / "bpe.model"))
    pieces = model.encode("hello ça", out_type=str)
    assert set(pieces) <= set(tokens)
    assert model.decode(pieces) == "hello ça"


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
