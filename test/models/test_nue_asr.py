"""Nue-ASR's released format: decoding, transformers' auto classes, settings.

Expected values come from transformers' HuBERT and GPT-NeoX and from sentencepiece, one
utterance at a time, without code of this package.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from nue_asr_reference import (
    RATE,
    Reference,
    change_config,
    change_weights,
    check,
    ids,
    noise,
)
from safetensors.torch import load_file, save_file
from tiny_models import BOS, EOS, SEP

from speechllm import SpeechToText
from speechllm.utils.errors import UserError


def test_reference_hypotheses_are_varied(nue_tokens, nue_waves):
    lengths = [len(tokens) for tokens in nue_tokens]
    assert len({tuple(t[:5]) for t in nue_tokens}) > 5  # they depend on the audio
    ended = [tokens[-1] == EOS for tokens in nue_tokens]
    assert any(ended) and not all(ended)
    assert min(lengths) >= 3


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_same_tokens_as_transformers_in_any_batch(
    nue_reference, nue_waves, nue_tokens, batch_size
):
    model = SpeechToText.from_pretrained(nue_reference.folder)
    check(model, nue_reference, nue_waves, nue_tokens, batch_size)


def test_order_does_not_change_tokens(nue_reference, nue_waves, nue_tokens):
    model = SpeechToText.from_pretrained(nue_reference.folder)
    check(model, nue_reference, nue_waves[::-1], nue_tokens[::-1], 4)


def test_utterances_below_the_minimum_do_not_depend_on_the_batch(
    nue_reference, nue_waves
):
    model = SpeechToText.from_pretrained(nue_reference.folder)
    mixed = [
        nue_waves[5],
        *noise([100, 400, 900, 1600, 2300, 3000], seed=1),
        nue_waves[7],
    ]
    alone = [ids(model, model.transcribe([wave])[0]) for wave in mixed]
    for size in (2, 8):
        together = model.transcribe(mixed, batch_size=size)
        assert [ids(model, r) for r in together] == alone


def test_bfloat16_decoding(nue_reference, nue_waves):
    recognizer = SpeechToText.from_pretrained(nue_reference.folder, dtype="bfloat16")
    assert recognizer.model.bridge.projection.weight.dtype == torch.bfloat16
    assert all(len(r.tokens) >= 2 for r in recognizer.transcribe(nue_waves[:3]))


def test_minimum_of_two_tokens(tmp_path, nue_waves):
    eager = Reference(tmp_path / "eager", "group", seed=10)
    with torch.no_grad():
        eager.llm.gpt_neox.final_layer_norm.bias[0] = 100
        eager.llm.get_output_embeddings().weight[EOS, 0] = 100
    save_file(eager.state(), eager.folder / "model.safetensors")
    expected = [eager.tokens(wave) for wave in nue_waves]
    assert {len(tokens) for tokens in expected} == {3}
    model = SpeechToText.from_pretrained(eager.folder)
    check(model, eager, nue_waves, expected, 4)


def test_new_weight_norm_names(tmp_path, nue_reference, nue_waves, nue_tokens):
    folder = tmp_path / "new"
    shutil.copytree(nue_reference.folder, folder)
    save_file(nue_reference.state(old_names=False), folder / "model.safetensors")
    check(SpeechToText.from_pretrained(folder), nue_reference, nue_waves, nue_tokens, 4)


@pytest.mark.parametrize("shards", [1, 3])
def test_torch_files_with_and_without_shards(
    tmp_path, nue_reference, nue_waves, nue_tokens, shards
):
    folder = tmp_path / "torch"
    shutil.copytree(nue_reference.folder, folder)
    (folder / "model.safetensors").unlink()
    state = nue_reference.state()
    # buffers in old GPT-NeoX checkpoints
    state["llm.gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    state["llm.gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(3)
    names = sorted(state)
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        files = [f"pytorch_model-{k:05}-of-00003.bin" for k in (1, 2, 3)]
        parts = {name: files[i % 3] for i, name in enumerate(names)}
        for part in set(parts.values()):
            held = {n: state[n] for n in names if parts[n] == part}
            torch.save(held, folder / part)
        index = {"metadata": {}, "weight_map": parts}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check(SpeechToText.from_pretrained(folder), nue_reference, nue_waves, nue_tokens, 4)


def test_only_japanese_recognition_is_supported(nue_reference, nue_waves):
    model = SpeechToText.from_pretrained(nue_reference.folder)
    one = model.transcribe(nue_waves[:2], language="ja")
    assert [r.text for r in one] == [r.text for r in model.transcribe(nue_waves[:2])]
    with pytest.raises(UserError, match="'en' has no name"):
        model.transcribe(nue_waves[:1], language="en")
    with pytest.raises(UserError, match="no prompt for task 'st'"):
        model.transcribe(nue_waves[:1], task="st", target_language="ja")


def test_byte_fallback_of_rare_characters(nue_reference):
    """transformers' own T5Tokenizer decodes them to <0xE9>…"""
    tokenizer = SpeechToText.from_pretrained(nue_reference.folder).model.llm.tokenizer
    for text in ("鵺は鳴く", "hello  world", "日本語 の", "二つ　空白", "<s>今日[SEP]"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if "<s>" in text:
            assert (tokens[0], tokens[-1]) == (BOS, SEP)
            assert tokenizer.decode(tokens, skip_special_tokens=True) == "今日"
        else:
            assert tokens == nue_reference.pieces.encode(text)
            assert tokenizer.decode(tokens) == nue_reference.pieces.decode(tokens)
    assert tokenizer.encode("今日")[-1] == EOS
    assert tokenizer.decode([]) == ""


def test_transcribe_command(capsys, tmp_path, nue_reference, speech_file):
    import soundfile

    from speechllm import cli
    from speechllm.audio.io import load_audio

    path, speech = tmp_path / "a.wav", load_audio(speech_file)[: 3 * RATE]
    soundfile.write(path, speech, RATE, subtype="FLOAT")
    model = str(nue_reference.folder)
    assert cli.main(["transcribe", "--model", model, str(path)]) == 0
    text = " ".join(nue_reference.text(nue_reference.tokens(speech)).split())
    assert capsys.readouterr().out == f"{path}\t{text}\n"


def test_settings_key_depends_on_every_model_file(tmp_path, nue_reference):
    """Hypotheses are reused only if no file of the model's folder has changed."""
    from speechllm.inference.decode_examples import settings_key

    folder = Path(shutil.copytree(nue_reference.folder, tmp_path / "model"))
    keys = [settings_key(folder, {}, "float32", {}, {})]

    def changed() -> bool:
        keys.append(settings_key(folder, {}, "float32", {}, {}))
        return keys[-1] != keys[-2]

    assert not changed()
    (folder / "README.md").write_text("card")
    assert not changed()
    change_weights(folder, lambda state: state["bridge_proj.bias"].add_(1))
    assert changed()
    change_config(folder, lambda config: config["llm_config"].update(rotary_pct=0.25))
    assert changed()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model-00001-of-00001.bin")
    assert changed()
    state["bridge_proj.bias"].add_(1)
    torch.save(state, folder / "pytorch_model-00001-of-00001.bin")
    assert changed()
    (folder / "tokenizer_config.json").write_text("{}")
    assert changed()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model"):
        settings_key(tmp_path / "empty", {}, "float32", {}, {})


# Auto classes and the hub


def test_auto_classes(tmp_path, nue_reference, nue_waves, nue_tokens):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    importlib.import_module("speechllm.models.nue_asr")

    config = AutoConfig.from_pretrained(nue_reference.folder)
    assert config.llm_config.rope_parameters["partial_rotary_factor"] == 0.5
    folder = tmp_path / "auto"
    AutoModel.from_pretrained(nue_reference.folder).save_pretrained(
        folder, max_shard_size="100KB"
    )
    assert (folder / "model.safetensors.index.json").exists()
    AutoProcessor.from_pretrained(nue_reference.folder).save_pretrained(folder)
    model, processor = (
        AutoModel.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    for wave, tokens in zip(nue_waves[:4], nue_tokens):
        found = model(**processor(wave))
        assert found[0].tolist() == tokens
        assert processor.decode(found[0]) == nue_reference.text(tokens)
    check(SpeechToText.from_pretrained(folder), nue_reference, nue_waves, nue_tokens, 4)


def test_import_path_of_release_0_1():
    """``import speechllm.model.nue_asr`` registers the same classes."""
    old = importlib.import_module("speechllm.model.nue_asr")
    new = importlib.import_module("speechllm.models.nue_asr")
    for name in ("NueASRConfig", "NueASRModel", "NueASRProcessor"):
        assert getattr(old, name) is getattr(new, name)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Folder that replaces the hub; one folder for each repository."""
    from types import SimpleNamespace

    import huggingface_hub

    root = tmp_path / "hub"

    def create_repo(api, repo_id, **options):
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(api, repo_id, operations, commit_message, **options):
        for operation in operations:
            with operation.as_file() as stream:
                path = root / repo_id / operation.path_in_repo
                path.write_bytes(stream.read())
        return f"https://hub/{repo_id}: {commit_message}"

    def upload_folder(api, repo_id, folder_path, commit_message, **options):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}: {commit_message}"

    def file_exists(api, repo_id, filename, **options):
        return (root / repo_id / filename).exists()

    def load_card(repo_id, **options):
        return huggingface_hub.ModelCard((root / repo_id / "README.md").read_text())

    for function in (create_repo, create_commit, upload_folder, file_exists):
        monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", load_card)
    return root


def test_push_to_hub_and_back(hub, nue_reference, nue_waves, nue_tokens):
    from transformers import AutoModel, AutoProcessor

    importlib.import_module("speechllm.models.nue_asr")

    model = AutoModel.from_pretrained(nue_reference.folder)
    assert "Upload model" in model.push_to_hub("me/nue", max_shard_size="100KB")
    AutoProcessor.from_pretrained(nue_reference.folder).push_to_hub("me/nue")
    uploaded = hub / "me" / "nue"
    assert len(list(uploaded.glob("model-*.safetensors"))) > 1
    card = (uploaded / "README.md").read_text("utf-8")
    assert "# Speech recognition in the format of Nue-ASR" in card
    assert card.startswith("---\nlibrary_name: transformers")
    check(
        SpeechToText.from_pretrained(uploaded), nue_reference, nue_waves, nue_tokens, 4
    )
    loaded, processor = (
        AutoModel.from_pretrained(uploaded),
        AutoProcessor.from_pretrained(uploaded),
    )
    assert loaded(**processor(nue_waves[0]))[0].tolist() == nue_tokens[0]
    (uploaded / "README.md").write_text("---\nlicense: mit\n---\nmine")
    model.push_to_hub("me/nue")
    assert "mine" in (uploaded / "README.md").read_text("utf-8")


# Parts of a released model


def test_its_encoder_and_llm_are_pretrained_models(nue_reference, nue_waves):
    """Both are used by name, as any other encoder and LLM."""
    from speechllm.models.hubert_encoder import HubertEncoder
    from speechllm.models.llm import LanguageModel

    encoder = HubertEncoder(str(nue_reference.folder), normalize=False).eval()
    wave = torch.from_numpy(nue_waves[3])[None]
    with torch.inference_mode():
        features, _ = encoder(wave, torch.tensor([wave.shape[1]]))
        expected = nue_reference.hubert(wave).last_hidden_state
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-4)

    llm = LanguageModel(str(nue_reference.folder), tuning="frozen", dtype="float32")
    tokens = torch.arange(7, 27)[None]
    with torch.inference_mode():
        logits = llm.causal_lm(tokens).logits
        torch.testing.assert_close(logits, nue_reference.llm(tokens).logits)
    assert llm.eos_id == nue_reference.llm.config.eos_token_id
    random = LanguageModel(str(nue_reference.folder), "full", random_init=True)
    state = random.causal_lm.state_dict()
    assert state.keys() == llm.causal_lm.state_dict().keys()
    name = "gpt_neox.layers.0.attention.dense.weight"
    assert not torch.equal(state[name], llm.causal_lm.state_dict()[name])
    with pytest.raises(
        ValueError, match="qlora cannot read .*set tuning to lora|qlora"
    ):
        LanguageModel(str(nue_reference.folder), tuning="qlora")
