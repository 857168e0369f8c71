"""CTC tokenizer against ESPnet's tokenizers."""

from __future__ import annotations

import pickle

import pytest
from espnet2.text.char_tokenizer import CharTokenizer
from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
from espnet2.text.token_id_converter import TokenIDConverter

from speechllm.data.ctc_vocabulary import build_bpe_vocabulary
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.utils.errors import UserError

LABELS = ["<blank>", "<unk>", "<space>", *"abcdefghij", "é", "<sos/eos>"]
TEXTS = ["", "a", "bad dab", "  a  b ", "éa e\u0301a", "a\u3000b\tc", "<unk> <space>"]
SENTENCES = [
    "please enter your password followed by the pound key",
    "the person at extension is on the phone",
    "you have no new messages in the folder",
]


@pytest.mark.parametrize("text", TEXTS)
def test_characters_equal_espnets(text):
    ours = CTCTokenizer(LABELS)
    expected = CharTokenizer(space_symbol="<space>").text2tokens(text)
    assert ours.tokens(text) == expected
    converter = TokenIDConverter(LABELS)
    assert ours(text) == converter.tokens2ids(expected)
    assert ours.unknown == converter.unk_id


def test_pieces_equal_espnets(tmp_path):
    lines = [f"u{i} {text}\n" for i, text in enumerate(SENTENCES)]
    (tmp_path / "text").write_text("".join(lines))
    labels = build_bpe_vocabulary([tmp_path / "text"], tmp_path / "bpe", 40)
    model = tmp_path / "bpe" / "bpe.model"
    ours, copy = CTCTokenizer(labels, model), None
    copy = pickle.loads(pickle.dumps(ours))  # for data loaders that start processes
    espnet, converter = SentencepiecesTokenizer(model), TokenIDConverter(labels)
    for text in [*SENTENCES, *TEXTS, "Über ünter"]:
        expected = espnet.text2tokens(text)
        assert ours.tokens(text) == expected
        assert ours(text) == copy(text) == converter.tokens2ids(expected)


def test_token_lists_that_cannot_be_used():
    with pytest.raises(UserError, match="has no <unk>"):
        CTCTokenizer(["<blank>", "a"])
    with pytest.raises(UserError, match="has 'a' twice"):
        CTCTokenizer(["<blank>", "<unk>", "a", "b", "a"])
