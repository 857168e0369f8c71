"""CSJ: every tag, both editions, dialogues, sets and errors in the input."""

from __future__ import annotations

import errno

import pytest
from csj_corpus import LONG, sdb, write_corpus, write_dvd_talk, write_talk

from speechllm.bin.prepare_data import main
from speechllm.corpora import csj
from speechllm.corpora._csj_editions import find_transcripts, read_sdb
from speechllm.corpora._csj_tags import Word, read_words
from speechllm.corpora.csj import prepare_csj
from speechllm.data import data_dir as datadir
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "CSJ")


def test_tables_are_as_expected(corpus, tmp_path, capsys):
    data = tmp_path / "data"
    arguments = ["--csj_dir", str(corpus), "--output", str(data)]
    main(["csj", *arguments, "--max_same_text", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        f"{data}/train: 12 utterances, 0.01 hours, 6 talks; left out: 1 masked speech, "
        "1 past the end of the recording, 2 same text too often"
    )
    assert printed[1] == f"{data}/dev: 1 utterances, 0.00 hours, 1 talks"
    assert printed[2].startswith("warning: dev lacks 38 of its 39 talks (A01M0377, ")
    assert printed[4].startswith("warning: eval1 lacks 9 of its 10 talks (A01M0097, ")
    train = data / "train"
    text = read_table(train / "text")
    some = {key: value for key, value in text.items() if key[0] in "AD"}
    assert some == {
        "A02F0001_0000500_0003000": "えーそれではは発表します",
        "A02F0001_0003501_0014200": "次はＣＤの話",
        "A02F0001_0017000_0017400": "うーん",
        "A02F0001_0018000_0018500": "技術",
        "D01F0002-L_0000000_0002000": "こんにちは今日は",
        "D01F0002-R_0000800_0003000": "はいそうですね",
    }
    assert sorted(value for key, value in text.items() if key[0] == "S") == (
        ["はい", "はい", "話一", "話三", "話二", "話四"]
    )
    segments = read_table(train / "segments")
    assert segments["A02F0001_0000500_0003000"] == "A02F0001 0.500 3.000"
    assert segments["D01F0002-R_0000800_0003000"] == "D01F0002-R 0.800 3.000"
    speakers = read_table(train / "utt2spk")
    assert speakers["D01F0002-L_0000000_0002000"] == "D01F0002-L"
    recordings = read_table(train / "wav.scp")
    assert recordings["A02F0001"] == f"{corpus}/WAV/noncore/A02F0001.wav"
    assert recordings["D01F0002-R"] == f"{corpus}/WAV/core/D01F0002-R.wav"
    dropped = (train / "dropped.tsv").read_text("utf-8").splitlines()
    assert dropped[0] == (
        "A02F0001_0014300_0015500\tprepare_data\tmasked speech\t××さんです"
    )
    assert dropped[1] == (
        "D01F0002-R_0060000_0061000\tprepare_data\tpast the end of the recording\t"
        f"ends at 61.00 s of 5.00 s in {corpus}/WAV/core/D01F0002-R.wav"
    )
    for name in csj.SETS:
        assert validate_data_dir(data / name) == []
    everywhere = "".join((data / n / "text").read_text("utf-8") for n in csj.SETS)
    assert "R00M0187" not in everywhere  # the speaker of A01M0056
    assert (data / "eval2" / "text").read_text("utf-8") == (
        "A01M0056_0000100_0001000 Aの話\n"
    )


def test_fluent_text_has_the_same_utterances(corpus, tmp_path):
    prepare_csj(corpus, tmp_path / "disfluent")
    prepare_csj(corpus, tmp_path / "fluent", style="fluent")
    disfluent = read_table(tmp_path / "disfluent/train/segments")
    fluent = read_table(tmp_path / "fluent/train/segments")
    assert disfluent.keys() - fluent.keys() == {"A02F0001_0017000_0017400"}
    assert fluent.items() <= disfluent.items()
    text = read_table(tmp_path / "fluent/train/text")
    assert text["A02F0001_0000500_0003000"] == "それでは発表します"
    dropped = read_dropped(tmp_path / "fluent/train")
    assert ("A02F0001_0017000_0017400", "empty text") in [
        (entry.id, entry.reason) for entry in dropped
    ]


def test_both_editions_give_the_same_data(corpus, tmp_path):
    prepare_csj(corpus, tmp_path / "sdb", edition="sdb")
    prepare_csj(corpus, tmp_path / "xml", edition="xml")
    for name in csj.SETS:
        for path in sorted((tmp_path / "sdb" / name).iterdir()):
            other = tmp_path / "xml" / name / path.name
            assert path.read_bytes() == other.read_bytes(), path.name


def test_xml_edition_is_found(tmp_path):
    corpus = write_corpus(tmp_path / "CSJ", editions=("xml",))
    assert find_transcripts(corpus)[1] == "xml"
    assert len(prepare_csj(corpus, tmp_path / "data")) == 9  # five sets, four warnings


@pytest.mark.parametrize("capitals", [False, True])
def test_edition_on_dvds_gives_the_same_data(tmp_path, capitals):
    """Talk folders on several discs, with CR LF, as in Kaldi's ``dvd`` version."""
    talks = {
        "A02F0001": LONG[:3],
        "D01F0002": [(0.0, 1.0, "L", ["こんにちは"]), (0.8, 1.2, "R", ["はい"])],
        **{
            talk: [(0.1, 1.0, "L", [talk[0], "の話"])]
            for talk in ("A01M0110", "A01M0056", "S00M0112", "A01M0264")
        },
    }
    for number, (talk, segments) in enumerate(talks.items()):
        write_talk(tmp_path / "drive", talk, segments, editions=("sdb",))
        disc = f"DVD{3 + number % 2}"
        write_dvd_talk(tmp_path / "discs", disc, talk, segments, capitals)
    prepare_csj(tmp_path / "drive", tmp_path / "a")
    prepare_csj(tmp_path / "discs", tmp_path / "b")
    assert find_transcripts(tmp_path / "discs")[1] == "dvd"
    for name in csj.SETS:
        for table in ("text", "segments", "utt2spk", "utt2dur"):
            ours = (tmp_path / "b" / name / table).read_bytes()
            assert ours == (tmp_path / "a" / name / table).read_bytes(), table
        files = read_table(tmp_path / "b" / name / "wav.scp")
        assert all(
            path.lower().endswith(f"{key.lower()}.wav") for key, path in files.items()
        )
        assert validate_data_dir(tmp_path / "b" / name) == []
    assert set(find_transcripts(tmp_path / "discs/DVD3")[0]) < set(talks)  # one disc


def test_corpus_without_dev_talks_needs_dev_utterances(corpus, tmp_path):
    """ESPnet's way: the first utterances of the other talks, by id."""
    (corpus / "MORPH/SDB/core/A01M0264.sdb").unlink()
    with pytest.raises(
        UserError, match=r"no transcript of dev .*--dev_utterances 4000"
    ):
        prepare_csj(corpus, tmp_path / "data")
    lines = prepare_csj(corpus, tmp_path / "data", kinds="AM", dev_utterances=2)
    assert lines[1] == f"{tmp_path}/data/dev: 2 utterances, 0.00 hours, 1 talks"
    assert not any("dev lacks" in line for line in lines)
    assert list(read_table(tmp_path / "data/dev/text")) == [
        "A02F0001_0000500_0003000",
        "A02F0001_0003501_0014200",
    ]
    assert list(read_table(tmp_path / "data/train/text")) == [
        "A02F0001_0017000_0017400",
        "A02F0001_0018000_0018500",
    ]
    for name in ("train", "dev"):
        assert validate_data_dir(tmp_path / "data" / name) == []
        assert list(read_table(tmp_path / "data" / name / "wav.scp")) == ["A02F0001"]
    with pytest.raises(UserError, match="4 training utterances are too few"):
        prepare_csj(corpus, tmp_path / "other", kinds="AM", dev_utterances=4)
    with pytest.raises(UserError, match="-1: give a number from 0 on"):
        prepare_csj(corpus, tmp_path / "other", dev_utterances=-1)


def test_evaluation_sets_keep_utterances_that_end_after_their_recording(tmp_path):
    corpus = write_corpus(tmp_path / "CSJ", editions=("sdb",))
    spec = [(0.0, 1.0, "L", ["一"]), (2.0, 6.0, "L", ["二"]), (9.0, 9.5, "L", ["三"])]
    for talk in ("A01M0110", "S05F0003"):
        write_talk(corpus, talk, spec, "core", 4.0, editions=("sdb",))
    prepare_csj(corpus, tmp_path / "data")
    assert read_table(tmp_path / "data/eval1/segments") == {
        "A01M0110_0000000_0001000": "A01M0110 0.000 1.000",
        "A01M0110_0002000_0006000": "A01M0110 2.000 4.000",
    }
    reason = "past the end of the recording"
    for name, missing in (("eval1", 1), ("train", 2)):
        dropped = read_dropped(tmp_path / "data" / name)
        assert [entry.reason for entry in dropped].count(reason) == missing + (
            name == "train"  # D01F0002
        )


def test_number_of_utterances_is_compared_with_that_of_espnet(tmp_path):
    corpus = write_corpus(tmp_path / "CSJ", editions=("sdb",))
    for talk in csj.EVALUATION["eval1"].split():
        write_talk(corpus, talk, [(0, 1, "L", ["話"])], editions=("sdb",))
    lines = prepare_csj(corpus, tmp_path / "data")
    assert (
        f"warning: eval1 has 10 utterances, in ESPnet's recipe 1,272; see "
        f"{tmp_path}/data/eval1/dropped.tsv"
    ) in lines
    lines = prepare_csj(corpus, tmp_path / "data", style="fluent")
    assert not any("ESPnet" in line for line in lines)


@pytest.mark.parametrize("kinds", ["", "Z", "AZ"])
def test_unknown_kinds_are_an_error(corpus, tmp_path, kinds):
    with pytest.raises(UserError, match=f"kinds '{kinds}': use letters of ASMRD"):
        prepare_csj(corpus, tmp_path / "data", kinds=kinds)


def test_kinds_restrict_train_and_dev_only(corpus, tmp_path):
    prepare_csj(corpus, tmp_path / "data", kinds="A")
    assert {key[0] for key in read_table(tmp_path / "data/train/text")} == {"A"}
    assert read_table(tmp_path / "data/eval3/text")


@pytest.mark.parametrize(
    ("words", "disfluent", "fluent"),
    [
        (["(F えー)", "本"], "えー本", "本"),
        (["比べ(F えー)る"], "比べえーる", "比べる"),
        (["西洋", "(D2 的)", "(D ふ)", "風"], "西洋的ふ風", "西洋風"),
        (["(X 実際は)", "実際に"], "実際は実際に", "実際に"),
        (["(? 字数)", "の", "(?)", "で"], "字数ので", "字数ので"),
        (["(? 次数,実数)"], "次数", "次数"),
        (["助詞の", "(M は)", "は"], "助詞のはは", "助詞のはは"),
        (["(O ザッツファイン)"], "ザッツファイン", "ザッツファイン"),
        (["(A シーディーアール;ＣＤ－Ｒ)"], "ＣＤ－Ｒ", "ＣＤ－Ｒ"),
        (["(A 二千;２０００)", "年"], "二千年", "二千年"),
        (["(A 千", "九百;１９００)", "円"], "千九百円", "千九百円"),
        (["(K たち (F えー) ばな;橘)", "です"], "橘です", "橘です"),
        (["合(K か(?)く;格)"], "合格", "合格"),
        (["(F (W エド;エト))", "何"], "エト何", "何"),
        (["(W (? ティーワイド);ティーエフ)"], "ティーエフ", "ティーエフ"),
        (["(W ギーツ；技術)"], "技術", "技術"),
        (["(W ギーツ;)", "(A シーディー;)"], "ギーツシーディー", "ギーツシーディー"),
        (["(W エド;(F エト))", "何"], "エト何", "何"),
        (["(A (F えー)二千;２０００)", "年"], "えー二千年", "二千年"),
        (["(R 国語)", "さん"], "××さん", "××さん"),
        (["ｆ（ｘ）", "＜"], "ｆ（ｘ）＜", "ｆ（ｘ）＜"),
        (["(B カズ;スー)"], "カズ", "スー"),
        (
            ["(笑 何が)", "(泣 どんな)", "(咳 に)", "(あくび ね)"],
            "何がどんなにね",
            None,
        ),
        (["(笑 (F えー)", "そう", "いっ", "た)"], "えーそういった", "そういった"),
        (["で(L す)"], "です", "です"),
        (["<H>本<Q>", "<笑>", "<フロア発話>", "<P:00453.373-00454.013>"], "本", "本"),
        (["(F <VN>)", "(F <FV>)", "はい"], "はい", "はい"),
        (["(F んーー)", "一・"], "ん一", "一"),
        (["第　三 章"], "第三章", "第三章"),
    ],
)
def test_tags_are_converted_to_text(words, disfluent, fluent):
    stream = [Word(word, 0, "a.sdb:1") for word in words]
    (text,), _ = read_words(stream, 1)
    assert text.disfluent == disfluent
    assert text.fluent == (disfluent if fluent is None else fluent)


def test_tags_span_segments():
    stream = [
        Word("(笑 あ", 0, "1"),
        Word("い)", 1, "2"),
        Word("(A アイ", 2, "3"),
        Word("ディー;ＩＤ)", 3, "4"),
        Word("です", 3, "5"),
    ]
    texts, tied = read_words(stream, 4)
    assert [text.disfluent for text in texts] == ["あ", "い", "", "ＩＤです"]
    assert tied == [(2, 3)]


def test_segments_that_a_tag_spans_are_joined(tmp_path):
    path = tmp_path / "A01F0001.sdb"
    spec = [
        (0, 1, "L", ["(K たち"]),
        (3, 4, "L", ["ばな;橘)", "だ"]),
        (9, 10, "L", ["で"]),
    ]
    path.write_bytes(sdb("A01F0001", spec).encode("cp932"))
    ((channel, segments),) = read_sdb(path, "A01F0001")
    assert channel == "L"
    times = [(one.start, one.end, one.text.disfluent) for one in segments]
    assert times == [(0, 4, "橘だ"), (9, 10, "で")]


def test_text_equals_that_of_lhotse(tmp_path):
    """Without the cases that lhotse reads differently."""
    lhotse = pytest.importorskip("lhotse.recipes.csj")
    words = [
        ["(F えー)", "それ", "では", "(D は)", "発表"],
        ["(A シーディーアール;ＣＤ－Ｒ)", "を", "(A 二千;２０００)", "枚"],
        ["(K たち(F えー)ばな;橘)", "(W ギーツ;技術)", "(B カズ;スー)"],
        [
            "西洋",
            "(D2 的)",
            "(? 字数)",
            "(? 次数,実数)",
            "(M は)",
            "(O オー)",
            "(X に)",
        ],
        ["(笑 (F えー)", "そう)", "(L で)", "(泣 す)", "<雑音>ね", "んーー", "一・"],
        ["(笑 続き", "の"],
        ["話)", "でし", "た"],
    ]
    spec = [(float(n), n + 0.5, "L", segment) for n, segment in enumerate(words)]
    path = tmp_path / "A01F0001.sdb"
    path.write_bytes(sdb("A01F0001", spec).encode("cp932"))
    parser = lhotse.CSJSDBParser(lhotse.DECISIONS)
    theirs = "".join(
        parser.parse(segment.text) for segment in lhotse._read_one_sdb(path)
    )
    ((_, ours),) = read_sdb(path, "A01F0001")
    text = "".join(one.text.disfluent for one in ours)
    assert text.replace("－", "−") == theirs  # the decoders' hyphens differ
    assert len(ours) == len(words)  # lhotse joins the last two


def test_sets_equal_those_of_lhotse():
    lhotse = pytest.importorskip("lhotse.recipes.csj")
    ours = [sorted(talks.split()) for talks in csj.EVALUATION.values()]
    assert ours == [sorted(talks) for talks in lhotse._EVAL]
    assert sorted(csj.EXCLUDED.split()) == sorted(lhotse._A01M0056)
    assert sorted(csj.DEV.split()) == sorted(lhotse._VALID)


# Bad input


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("(Z 何)", r"A02F0001.sdb:1: unknown tag \(Z 何\) in '\(Z 何\)'"),
        ("(Fえー)(FX a)", r":1: unknown tag \(FX a\)"),
        ("（Ｆ　えー）はい", r":1: unknown tag （Ｆ　えー） in "),
        ("はい＜雑音＞", ":1: unknown tag ＜雑音＞ in "),
        ("本<鼻息>", ":1: unknown tag <鼻息>"),
        ("(F えー", r":1: the tag \(F is never closed"),
        ("本)", ":1: closing bracket without an opening one: 本"),
    ],
)
def test_bad_tags_are_errors(corpus, tmp_path, word, message):
    write_talk(corpus, "A02F0001", [(0, 1, "L", [word])], "noncore")
    with pytest.raises(UserError, match=message):
        prepare_csj(corpus, tmp_path / "data")
    with pytest.raises(UserError, match=r"A02F0001.xml: IPU 0001: "):
        prepare_csj(corpus, tmp_path / "data", edition="xml")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sdb("A02F0001", LONG).encode("utf-8"), "not Shift-JIS.*looks like UTF-8"),
        (sdb("A02F0001", LONG).encode("euc_jp"), "not Shift-JIS.*looks like EUC-JP"),
        (b"a\tb\n", "A02F0001.sdb:1: not a line of an SDB file"),
        (b"a\tb\tc\t0001 L:\te\tf\n", "A02F0001.sdb:1: not a line of an SDB file"),
        (b"", "A02F0001.sdb: the transcript is empty"),
    ],
)
def test_bad_sdb_files_are_errors(corpus, tmp_path, content, message):
    (corpus / "MORPH/SDB/noncore/A02F0001.sdb").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_csj(corpus, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_bad_xml_files_are_errors(corpus, tmp_path):
    path = corpus / "XML/BaseXML/noncore/A02F0001.xml"
    whole = path.read_bytes()
    for content, message in (
        (whole[:900], "A02F0001.xml: not a complete XML file"),
        (whole.replace(b"IPUEndTime", b"X"), "IPU 0001: no start or end time"),
        (b'<?xml version="1.0"?><Talk/>', "A02F0001.xml: the transcript is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            prepare_csj(corpus, tmp_path / "data", edition="xml")


def test_wrong_folder_is_an_error(corpus, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare_csj(tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(UserError) as error:
        prepare_csj(corpus / "WAV", tmp_path / "data")
    assert "no MORPH/SDB/**/{core,noncore}/*.sdb, nor XML" in str(error.value)
    assert "it contains: core, noncore" in str(error.value)


def test_missing_and_damaged_files_are_listed(corpus, tmp_path):
    (corpus / "WAV/noncore/A02F0001.wav").unlink()
    damaged = corpus / "WAV/noncore/S00F0003.wav"
    damaged.write_bytes(damaged.read_bytes()[:30])
    prepare_csj(corpus, tmp_path / "data")
    dropped = read_dropped(tmp_path / "data/train")
    # every utterance is listed, so that the share of dropped ones is correct
    ids = {"0000500_0003000", "0003501_0014200", "0014300_0015500"}
    ids |= {"0017000_0017400", "0018000_0018500"}
    assert {entry.id for entry in dropped if entry.reason == "no audio file"} == {
        f"A02F0001_{times}" for times in ids
    }
    assert [entry.id for entry in dropped if entry.reason == "unreadable audio"] == [
        "S00F0003_0000000_0000500",
        "S00F0003_0002000_0002500",
    ]
    assert dropped[0].detail == f"{corpus}/WAV/noncore/A02F0001.wav"
    (corpus / "WAV/core/A01M0110.wav").unlink()
    with pytest.raises(UserError, match=r"no usable utterance in eval1 .*A01M0110.wav"):
        prepare_csj(corpus, tmp_path / "other")
    (corpus / "MORPH/SDB/core/A01M0110.sdb").unlink()
    with pytest.raises(UserError, match=r"no transcript of eval1 \(A01M0097, "):
        prepare_csj(corpus, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_two_transcripts_of_a_talk_are_an_error(corpus, tmp_path):
    write_talk(corpus, "A02F0001", LONG, "core")
    with pytest.raises(UserError, match="noncore/A02F0001.sdb: .* is the same talk"):
        prepare_csj(corpus, tmp_path / "data")


def test_full_disk_keeps_the_old_sets(corpus, tmp_path, monkeypatch):
    prepare_csj(corpus, tmp_path / "data")
    before = (tmp_path / "data/train/text").read_bytes()
    write = write_spk2utt

    def full_at_the_last_set(folder):
        if "eval3" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder)

    monkeypatch.setattr(datadir, "write_spk2utt", full_at_the_last_set)
    with pytest.raises(OSError, match="No space left.*data/eval3'$"):
        prepare_csj(corpus, tmp_path / "data", style="fluent")
    assert (tmp_path / "data/train/text").read_bytes() == before  # all or none
    assert not list((tmp_path / "data").glob(".*"))
