"""Nue-ASR's released format: read as its authors' code reads it, and written.

What is expected comes from transformers' HuBERT and GPT-NeoX and from sentencepiece,
one utterance at a time, and from no code of this package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BOS, EOS, SEP, write_tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, HubertConfig, HubertModel

from speechllm import SpeechToText
from speechllm.utils.errors import UserError

RATE = 16000


class Reference:
    """The authors' model, put together from transformers alone."""

    def __init__(self, folder: Path, norm: str, seed: int):
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        self.pieces = write_tokenizer(folder)
        hubert = HubertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, feat_extract_norm=norm,
            do_stable_layer_norm=norm == "layer", conv_bias=norm == "layer",
            initializer_range=0.2,
        )  # fmt: skip
        neox = GPTNeoXConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=96, vocab_size=len(self.pieces),
            max_position_embeddings=512, use_parallel_residual=False,
            bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0, rotary_pct=0.5,
            rotary_emb_base=5000, initializer_range=0.2,
        )  # fmt: skip
        self.hubert = HubertModel(hubert).eval()
        self.llm = GPTNeoXForCausalLM(neox).eval()
        self.convs = [torch.nn.Conv1d(32, 32, 4, 2) for _ in range(2)]
        self.projection = torch.nn.Linear(32, 48)
        with torch.no_grad():
            for parameter in [*self.convs[0].parameters(), *self.convs[1].parameters()]:
                parameter.mul_(4)
            self.projection.weight.mul_(8)
            self.llm.get_output_embeddings().weight[EOS] *= 2.5  # some answers end
        self.folder = folder
        config = {
            "model_type": "nue_asr",
            "architectures": ["NueASRModel"],
            "audio_encoder_config": hubert.to_dict(),
            "llm_config": neox.to_dict(),
            "bridge_conv_kernel_size": [4, 4],
            "bridge_conv_stride": [2, 2],
        }
        # as the authors' version of transformers wrote the rotary options
        config["llm_config"].pop("rope_parameters")
        config["llm_config"] |= {"rotary_pct": 0.5, "rotary_emb_base": 5000}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self.state(), folder / "model.safetensors", metadata={"format": "pt"})

    def state(self, old_names: bool = True) -> dict[str, torch.Tensor]:
        """The weights by their names, those of weight norm old or new."""
        state = {f"audio_encoder.{k}": v for k, v in self.hubert.state_dict().items()}
        state |= {f"llm.{k}": v for k, v in self.llm.state_dict().items()}
        for index, conv in enumerate(self.convs):
            state[f"bridge_convs.{index}.weight"] = conv.weight.data
            state[f"bridge_convs.{index}.bias"] = conv.bias.data
        state["bridge_proj.weight"] = self.projection.weight.data
        state["bridge_proj.bias"] = self.projection.bias.data
        if old_names:
            position = "audio_encoder.encoder.pos_conv_embed.conv."
            for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
                new_name = f"{position}parametrizations.weight.{new}"
                state[position + old] = state.pop(new_name)
        if "llm.lm_head.weight" in state:  # its name from transformers 5 on
            state["llm.embed_out.weight"] = state.pop("llm.lm_head.weight")
        return {k: v.clone() for k, v in state.items()}

    @torch.inference_mode()
    def tokens(self, wave: np.ndarray, **generation) -> list[int]:
        """The tokens of one utterance, in the way of the authors' code."""
        hidden = self.hubert(torch.from_numpy(wave)[None]).last_hidden_state
        hidden = hidden.transpose(1, 2)
        for conv in self.convs:
            hidden = torch.nn.functional.gelu(conv(hidden))
        speech = self.projection(hidden.transpose(1, 2))
        embed = self.llm.get_input_embeddings()
        prompt = torch.cat(
            [embed(torch.tensor([[BOS]])), speech, embed(torch.tensor([[SEP]]))], 1
        )
        options = {
            "do_sample": False,
            "num_beams": 1,
            "min_new_tokens": 2,
            "max_new_tokens": int(4 * len(wave) / RATE + 20 + 0.5),
            "pad_token_id": 0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        }
        return self.llm.generate(inputs_embeds=prompt, **{**options, **generation})[
            0
        ].tolist()

    def text(self, tokens: list[int]) -> str:
        """Their text, by sentencepiece, and spaces as transformers 4 left them."""
        text = self.pieces.decode([t for t in tokens if t > 6]).strip()
        for mark in (".", "?", "!", ","):
            text = text.replace(f" {mark}", mark)
        return text.strip()


def noise(lengths, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    waves = [generator.standard_normal(n) * 0.3 for n in lengths]
    return [
        (w * np.sin(np.arange(len(w)) * (0.01 + 0.02 * i))).astype(np.float32)
        for i, w in enumerate(waves)
    ]


@pytest.fixture(scope="module", params=["group", "layer"])
def reference(request, tmp_path_factory) -> Reference:
    root = tmp_path_factory.mktemp("nue")
    seed = {"group": 10, "layer": 8}[request.param]  # some answers end, some do not
    return Reference(root / request.param, request.param, seed)


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    # from the shortest that the bridge takes (10 frames) to seconds
    return noise([3400, 3280, 5000, 16000, 24601, 33000, 48017, 90000, 7777, 61234])


@pytest.fixture(scope="module")
def expected(reference, waves) -> list[list[int]]:
    return [reference.tokens(wave) for wave in waves]


def ids(model: SpeechToText, result) -> list[int]:
    return model.model.llm.tokenizer.convert_tokens_to_ids(result.tokens)


def without_end(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens[-1] == EOS else tokens


def check(model: SpeechToText, reference, waves, expected, batch_size: int) -> None:
    results = model.transcribe(waves, batch_size=batch_size)
    assert [ids(model, r) for r in results] == [without_end(t) for t in expected]
    assert [r.text for r in results] == [reference.text(t) for t in expected]


def test_the_test_says_something(expected, waves):
    lengths = [len(tokens) for tokens in expected]
    assert len({tuple(t[:5]) for t in expected}) > 5  # the audio decides
    ended = [tokens[-1] == EOS for tokens in expected]
    assert any(ended) and not all(ended)
    assert min(lengths) >= 3


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_same_tokens_as_transformers_in_any_batch(
    reference, waves, expected, batch_size
):
    model = SpeechToText.from_pretrained(reference.folder)
    check(model, reference, waves, expected, batch_size)


def test_other_order_same_tokens(reference, waves, expected):
    model = SpeechToText.from_pretrained(reference.folder)
    check(model, reference, waves[::-1], expected[::-1], 4)


def test_shorter_than_the_bridge_takes_is_the_same_in_any_batch(reference, waves):
    model = SpeechToText.from_pretrained(reference.folder)
    mixed = [waves[5], *noise([100, 400, 900, 1600, 2300, 3000], seed=1), waves[7]]
    alone = [ids(model, model.transcribe([wave])[0]) for wave in mixed]
    for size in (2, 8):
        together = model.transcribe(mixed, batch_size=size)
        assert [ids(model, r) for r in together] == alone


def test_half_precision_decodes(reference, waves):
    model = SpeechToText.from_pretrained(reference.folder, dtype="bfloat16")
    assert model.model.bridge.projection.weight.dtype == torch.bfloat16
    assert all(len(r.tokens) >= 2 for r in model.transcribe(waves[:3]))


def test_at_least_two_tokens_however_much_it_wants_to_end(tmp_path, waves):
    eager = Reference(tmp_path / "eager", "group", seed=10)
    with torch.no_grad():
        eager.llm.gpt_neox.final_layer_norm.bias[0] = 100
        eager.llm.get_output_embeddings().weight[EOS, 0] = 100
    save_file(eager.state(), eager.folder / "model.safetensors")
    expected = [eager.tokens(wave) for wave in waves]
    assert {len(tokens) for tokens in expected} == {3}
    model = SpeechToText.from_pretrained(eager.folder)
    check(model, eager, waves, expected, 4)


def test_new_names_of_weight_norm(tmp_path, reference, waves, expected):
    folder = tmp_path / "new"
    shutil.copytree(reference.folder, folder)
    save_file(reference.state(old_names=False), folder / "model.safetensors")
    check(SpeechToText.from_pretrained(folder), reference, waves, expected, 4)


@pytest.mark.parametrize("shards", [1, 3])
def test_torch_files_whole_and_in_shards(tmp_path, reference, waves, expected, shards):
    folder = tmp_path / "torch"
    shutil.copytree(reference.folder, folder)
    (folder / "model.safetensors").unlink()
    state = reference.state()
    # buffers that GPT-NeoX checkpoints of that time hold too
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
    check(SpeechToText.from_pretrained(folder), reference, waves, expected, 4)


def test_language_is_japanese_and_the_only_task_recognition(reference, waves):
    model = SpeechToText.from_pretrained(reference.folder)
    one = model.transcribe(waves[:2], language="ja")
    assert [r.text for r in one] == [r.text for r in model.transcribe(waves[:2])]
    with pytest.raises(UserError, match="'en' has no name"):
        model.transcribe(waves[:1], language="en")
    with pytest.raises(UserError, match="no prompt for task 'st'"):
        model.transcribe(waves[:1], task="st", target_language="ja")


def test_rare_characters_come_out_whole(reference):
    """Byte fallback: transformers' own T5Tokenizer writes <0xE9>… there."""
    tokenizer = SpeechToText.from_pretrained(reference.folder).model.llm.tokenizer
    for text in ("鵺は鳴く", "hello  world", "日本語 の", "二つ　空白", "<s>今日[SEP]"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if "<s>" in text:
            assert (tokens[0], tokens[-1]) == (BOS, SEP)
            assert tokenizer.decode(tokens, skip_special_tokens=True) == "今日"
        else:
            assert tokens == reference.pieces.encode(text)
            assert tokenizer.decode(tokens) == reference.pieces.decode(tokens)
    assert tokenizer.encode("今日")[-1] == EOS
    assert tokenizer.decode([]) == ""


# --- writing and the auto classes ---------------------------------------------------


def test_round_trip(tmp_path, reference, waves, expected):
    from speechllm.export.nue_asr_format import save_nue_asr

    folder = tmp_path / "saved"
    model = SpeechToText.from_pretrained(reference.folder)
    save_nue_asr(model, folder, license="apache-2.0")
    check(SpeechToText.from_pretrained(folder), reference, waves, expected, 4)
    written, given = load_file(folder / "model.safetensors"), reference.state(False)
    assert set(written) == set(given)
    assert all(torch.equal(written[k], given[k]) for k in given)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "nue_asr"
    assert config["llm_config"]["use_cache"]
    assert config["llm_config"]["rotary_pct"] == 0.5  # for older transformers
    assert config["llm_config"]["rotary_emb_base"] == 5000
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "T5Tokenizer"
    assert tokenizer["extra_ids"] == 0
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "language: ja" in card


def test_auto_classes(tmp_path, reference, waves, expected):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    config = AutoConfig.from_pretrained(reference.folder)
    assert config.llm_config.rope_parameters["partial_rotary_factor"] == 0.5
    folder = tmp_path / "auto"
    AutoModel.from_pretrained(reference.folder).save_pretrained(
        folder, max_shard_size="100KB"
    )
    assert (folder / "model.safetensors.index.json").exists()
    AutoProcessor.from_pretrained(reference.folder).save_pretrained(folder)
    model, processor = (
        AutoModel.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    for wave, tokens in zip(waves[:4], expected):
        found = model(**processor(wave))
        assert found[0].tolist() == tokens
        assert processor.decode(found[0]) == reference.text(tokens)
    check(SpeechToText.from_pretrained(folder), reference, waves, expected, 4)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder that takes commits in place of the hub."""
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


def test_push_to_hub_and_back(hub, reference, waves, expected):
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(reference.folder)
    assert "Upload model" in model.push_to_hub("me/nue", max_shard_size="100KB")
    AutoProcessor.from_pretrained(reference.folder).push_to_hub("me/nue")
    uploaded = hub / "me" / "nue"
    assert len(list(uploaded.glob("model-*.safetensors"))) > 1
    card = (uploaded / "README.md").read_text("utf-8")
    assert "# Speech recognition in the format of Nue-ASR" in card
    assert card.startswith("---\nlibrary_name: transformers")
    check(SpeechToText.from_pretrained(uploaded), reference, waves, expected, 4)
    loaded, processor = (
        AutoModel.from_pretrained(uploaded),
        AutoProcessor.from_pretrained(uploaded),
    )
    assert loaded(**processor(waves[0]))[0].tolist() == expected[0]
    (uploaded / "README.md").write_text("---\nlicense: mit\n---\nmine")
    model.push_to_hub("me/nue")
    assert "mine" in (uploaded / "README.md").read_text("utf-8")


def test_a_trained_model_is_written_with_its_adapters_merged(
    tmp_path, reference, waves
):
    """HuBERT and GPT-NeoX from folders, LoRA, our training's form, exported."""
    import yaml

    from speechllm.export.nue_asr_format import save_nue_asr
    from speechllm.models.speech_llm import build_speech_llm

    reference.hubert.save_pretrained(tmp_path / "hubert")
    reference.llm.save_pretrained(tmp_path / "llm")
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(reference.folder / name, tmp_path / "llm" / name)
    config = {
        "encoder": "hubert",
        "encoder_conf": {"model": str(tmp_path / "hubert"), "normalize": False},
        "bridge": "convolution",
        "bridge_conf": {},
        "llm": "causal_lm",
        "llm_conf": {"model": str(tmp_path / "llm"), "dtype": "float32"},
        "model_conf": {"ctc_weight": 0.3},
    }
    labels = ["<blank>", "<unk>", "あ", "<sos/eos>"]
    trained = build_speech_llm({**config, "token_list": labels})
    torch.manual_seed(1)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ours = tmp_path / "ours"
    ours.mkdir()
    save_file(trained.state_dict(), ours / "model.safetensors")
    (ours / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (ours / "tokens.txt").write_text("\n".join(labels) + "\n", "utf-8")
    prompt = 'languages: {ja: Japanese}\ntasks: {asr: "<s>{speech}[SEP]"}\n'
    (ours / "prompts.yaml").write_text(prompt)

    model = SpeechToText.from_pretrained(ours)
    save_nue_asr(model, tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(state) == set(reference.state(old_names=False))
    other = SpeechToText.from_pretrained(tmp_path / "theirs")
    found = [ids(other, r) for r in other.transcribe(waves)]
    assert found == [ids(model, r) for r in model.transcribe(waves, min_tokens=2)]
    plain = SpeechToText.from_pretrained(reference.folder)
    assert found != [ids(plain, r) for r in plain.transcribe(waves)]  # LoRA did it


def test_what_the_format_cannot_hold_is_refused(tmp_path, reference):
    from dataclasses import replace

    from speechllm.export.nue_asr_format import save_nue_asr

    model = SpeechToText.from_pretrained(reference.folder)
    prompts = model.prompts
    model.prompts = replace(prompts, tasks={"asr": "{speech}今日"})
    with pytest.raises(UserError, match="one prompt"):
        save_nue_asr(model, tmp_path / "out")
    model.prompts = prompts
    model.model.bridge = torch.nn.Identity()
    with pytest.raises(UserError, match="ConvolutionBridge.*Identity"):
        save_nue_asr(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- starting from it ---------------------------------------------------------------


def nue_like(tmp_path, reference, tuning: str):
    """A SpeechLLM of our training with other weights than the reference."""
    from speechllm.models.speech_llm import build_speech_llm

    reference.hubert.save_pretrained(tmp_path / "hubert")
    reference.llm.save_pretrained(tmp_path / "llm")
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(reference.folder / name, tmp_path / "llm" / name)
    return build_speech_llm(
        {
            "encoder": "hubert",
            "encoder_conf": {
                "model": str(tmp_path / "hubert"),
                "normalize": False,
                "random_init": True,
            },
            "bridge": "convolution",
            "llm": "causal_lm",
            "llm_conf": {
                "model": str(tmp_path / "llm"),
                "tuning": tuning,
                "dtype": "float32",
                "random_init": True,
            },
            "model_conf": {"ctc_weight": 0.3, "autocast": "float32"},
            "token_list": ["<blank>", "<unk>", "あ", "<sos/eos>"],
        }
    )


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_training_starts_from_a_released_model(
    tmp_path, reference, waves, expected, tuning
):
    """What is loaded answers as the released model; adapters start as nothing."""
    from speechllm.text.prompts import Prompts
    from speechllm.training.initialization import load_init_param

    model = nue_like(tmp_path, reference, tuning)
    load_init_param(str(reference.folder), model, False, "cpu")
    prompts = Prompts({"asr": "<s>{speech}[SEP]"}, {"ja": "Japanese"}, origin="test")
    speech_to_text = SpeechToText(model, prompts, {"min_tokens": 2})
    check(speech_to_text, reference, waves, expected, 4)
    # the next checkpoint holds what differs from the pretrained parts: all of it
    held = set(model.state_dict())
    assert "ctc.ctc_lo.weight" in held
    layer = "llm.causal_lm.gpt_neox.layers.0.attention.query_key_value."
    base = layer + ("base_layer.weight" if tuning == "lora" else "weight")
    assert base in held and (layer + "lora_A.default.weight" in held) == (
        tuning == "lora"
    )


def test_adaptation_starts_from_a_training_of_the_whole(tmp_path, reference):
    from speechllm.training.initialization import load_init_param

    whole = nue_like(tmp_path, reference, "full")
    torch.save(whole.state_dict(), tmp_path / "1epoch.pth")
    adapted = nue_like(tmp_path, reference, "lora")
    load_init_param(str(tmp_path / "1epoch.pth"), adapted, False, "cpu")
    state = adapted.state_dict()
    for name, value in whole.state_dict().items():
        found = state.get(name)
        if found is None:  # below an adapter
            stem, _, last = name.rpartition(".")
            found = state[f"{stem}.base_layer.{last}"]
        assert torch.equal(found, value)
    load_init_param(f"{tmp_path / '1epoch.pth'}:bridge", adapted, False, "cpu")


def test_a_start_that_does_not_fit_is_named(tmp_path, reference):
    from speechllm.training.initialization import load_init_param

    model = nue_like(tmp_path, reference, "lora")
    model.bridge.projection = torch.nn.Linear(32, 40)
    message = (
        r"2 tensors do not fit this model: bridge\.projection\.weight \(48, 32\) "
        r"instead of \(40, 32\), bridge\.projection\.bias"
    )
    with pytest.raises(UserError, match=message):
        load_init_param(str(reference.folder), model, False, "cpu")


def test_hypotheses_are_of_the_model_that_is_there(tmp_path, reference):
    """What decoding goes on with depends on every file of the folder."""
    from speechllm.inference.decode_examples import settings_key

    folder = Path(shutil.copytree(reference.folder, tmp_path / "model"))
    keys = [settings_key(folder, {}, "float32", {}, {})]

    def changed() -> bool:
        keys.append(settings_key(folder, {}, "float32", {}, {}))
        return keys[-1] != keys[-2]

    assert not changed()
    (folder / "README.md").write_text("card")
    assert not changed()
    break_state(folder, lambda state: state["bridge_proj.bias"].add_(1))
    assert changed()
    break_config(folder, lambda config: config["llm_config"].update(rotary_pct=0.25))
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


# --- bad input ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Reference:
    return Reference(tmp_path_factory.mktemp("bad") / "released", "group", seed=10)


@pytest.fixture
def copy(tmp_path, released) -> Path:
    return Path(shutil.copytree(released.folder, tmp_path / "copy"))


def break_state(copy: Path, change) -> None:
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors")


def break_config(copy: Path, change) -> None:
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))


def test_weights_of_another_shape_are_named(copy):
    def change(state):
        state["bridge_proj.bias"] = torch.zeros(3)
        state["bridge_convs.0.weight"] = torch.zeros(32, 32, 5)

    break_state(copy, change)
    message = (
        r"2 weights are of another shape.*bridge_convs\.0\.weight \(32, 32, 5\) "
        r"instead of \(32, 32, 4\), bridge_proj\.bias \(3,\)"
    )
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_a_config_of_a_far_larger_model_takes_no_memory(copy):
    """GPT-NeoX's defaults are those of the model with 20 billion weights."""
    break_config(copy, lambda config: config.update(llm_config={}))
    message = r"30 weights are of another shape.*bridge_proj\.bias \(48,\) instead"
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_missing_and_unknown_weights_are_named(copy):
    break_state(copy, lambda state: state.pop("bridge_proj.bias"))
    with pytest.raises(UserError, match=r"1 weights are missing: bridge_proj\.bias"):
        SpeechToText.from_pretrained(copy)
    break_state(
        copy,
        lambda state: state.update(
            {"bridge_proj.bias": torch.zeros(48), "bridge_convs.2.bias": torch.ones(1)}
        ),
    )
    with pytest.raises(UserError, match=r"none of this model's: bridge_convs\.2\.bias"):
        SpeechToText.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("llm_config"), "the key 'llm_config' is missing"),
        (lambda c: c.update(audio_encoder_config=3), "'audio_encoder_config'"),
        (lambda c: c["llm_config"].update(num_attention_heads=5), "not a valid config"),
        (lambda c: c.update(bridge_conv_stride=[2]), "no model can be built from it"),
        (lambda c: c["llm_config"].update(vocab_size=-1), "no model can be built"),
        (lambda c: c["llm_config"].update(hidden_size="x"), "not a valid config"),
        (lambda c: c.update(model_type="hubert"), "no model"),
    ],
)
def test_broken_configs(copy, change, message):
    break_config(copy, change)
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_broken_files(copy):
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="the weights cannot be read"):
        SpeechToText.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model.safetensors"):
        SpeechToText.from_pretrained(copy)


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused(copy, released, tmp_path):
    (copy / "model.safetensors").unlink()
    evil = Evil(tmp_path / "harm")
    torch.save({**released.state(), "x": evil}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="the weights cannot be read"):
        SpeechToText.from_pretrained(copy)
    assert not evil.path.exists()


def test_no_tokenizer(copy):
    (copy / "spiece.model").write_bytes(b"none")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        SpeechToText.from_pretrained(copy)
    (copy / "spiece.model").unlink()
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        SpeechToText.from_pretrained(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sampling_rate": 8000}', "sampling_rate 8000; such models hear 16000 Hz"),
        ('{"sampling_rate": "fast"}', "sampling_rate 'fast'"),
        ('{"sampling_rate": null}', "sampling_rate None"),
        ("16000", "preprocessor_config.json: cannot be read"),
        ("{", "preprocessor_config.json: cannot be read"),
    ],
)
def test_a_sampling_rate_that_is_none(copy, content, message):
    (copy / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        SpeechToText.from_pretrained(copy)


def test_an_encoder_of_another_sampling_rate(tmp_path, reference):
    from speechllm.models.hubert_encoder import HubertEncoder

    reference.hubert.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(ValueError, match="8000, but speech comes here at 16000 Hz"):
        HubertEncoder(str(tmp_path), normalize=False)


def broken_rate(folder: Path) -> Path:
    """A WAV file whose header says 0 Hz."""
    import io

    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(1600), RATE, format="WAV")
    content = bytearray(stream.getvalue())
    content[24:28] = bytes(4)
    (folder / "zero.wav").write_bytes(content)
    return folder / "zero.wav"


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda c: (c / "config.json").unlink(), ["{wav}"], "no model"),
        (
            lambda c: break_config(c, lambda config: config.pop("llm_config")),
            ["{wav}"],
            "the key 'llm_config' is missing",
        ),
        (
            lambda c: break_state(
                c, lambda state: state.update({"bridge_proj.bias": torch.zeros(3)})
            ),
            ["{wav}"],
            r"1 weights are of another shape.*bridge_proj\.bias \(3,\)",
        ),
        (None, ["{folder}/none"], None),
        (None, ["{zero}"], None),
        (None, [], "nothing to transcribe"),
        (None, ["{wav}", "--task", "tts"], "no prompt for task 'tts'"),
        (None, ["{wav}", "--language", "en"], "'en' has no name"),
        (None, ["{wav}", "--output", "{wav}/out"], "cannot be written"),
    ],
)
def test_bad_input_on_the_command_line(
    capsys, tmp_path, copy, waves, spoil, arguments, message
):
    """The same sentences as from the API; a recording alone does not stop it."""
    import soundfile

    from speechllm import cli

    if spoil is not None:
        spoil(copy)
    soundfile.write(tmp_path / "a.wav", waves[0], RATE)
    names = {
        "wav": tmp_path / "a.wav",
        "folder": tmp_path,
        "zero": broken_rate(tmp_path),
    }
    words = [argument.format(**names) for argument in arguments]
    command = ["transcribe", "--model", str(copy), *words]
    if message is not None:
        with pytest.raises(UserError, match=message):
            cli.main(command)
        return
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and f"error: {words[0]}: " in captured.err


def test_nothing_else_is_replaced_by_a_model(tmp_path, copy):
    from speechllm import cli

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("home", "is not replaced"),
        ("file", "is not replaced"),
        ("file/below", "cannot be written"),
    ):
        command = ["to_nue_asr", "--model", str(copy)]
        with pytest.raises(UserError, match=message):
            cli.main([*command, "--output", str(tmp_path / name)])
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    assert (tmp_path / "file").read_text() == "mine"
    cli.main([*command, "--output", str(copy)])  # a model may be


def test_command_line_writes_the_format(capsys, tmp_path, copy, waves):
    from speechllm import cli

    folder = tmp_path / "new" / "folder"
    command = ["to_nue_asr", "--model", str(copy), "--output", str(folder)]
    assert cli.main([*command, "--license", "mit"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert "license: mit" in (folder / "README.md").read_text()
    texts = [r.text for r in SpeechToText.from_pretrained(folder).transcribe(waves)]
    model = SpeechToText.from_pretrained(copy)
    assert texts == [r.text for r in model.transcribe(waves)]


def test_command_line(capsys, tmp_path, reference, speech_file):
    import soundfile

    from speechllm import cli
    from speechllm.audio.io import load_audio

    path, speech = tmp_path / "a.wav", load_audio(speech_file)[: 3 * RATE]
    soundfile.write(path, speech, RATE, subtype="FLOAT")
    model = str(reference.folder)
    assert cli.main(["transcribe", "--model", model, str(path)]) == 0
    text = " ".join(reference.text(reference.tokens(speech)).split())
    assert capsys.readouterr().out == f"{path}\t{text}\n"
