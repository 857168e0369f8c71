"""SpeechLLM: losses against transformers and ESPnet, statistics, checkpoints."""

from __future__ import annotations

import pytest
import torch
from tiny_models import LABELS, write_tiny_conformer, write_tiny_hubert

from speechllm.models.speech_llm import SpeechLLM, build_speech_llm, unpad

SENTENCES = ("hello you", "a", "please wait for the tone")


def config(tiny_whisper, tiny_llm, bridge="convolution", **options) -> dict:
    return {
        "encoder": "whisper",
        "encoder_conf": {"model": str(tiny_whisper)},
        "bridge": bridge,
        "bridge_conf": {},
        "llm": "causal_lm",
        "llm_conf": {"model": str(tiny_llm), "dtype": "float32", "lora": {"r": 2}},
        "model_conf": {"ctc_weight": 0.3, "autocast": "float32"},
        "token_list": LABELS,
        **options,
    }


@pytest.fixture
def make(tiny_whisper, tiny_llm):
    """Build a tiny model; keywords replace parts of its configuration."""

    def build(seed: int = 1, **options) -> SpeechLLM:
        torch.manual_seed(seed)
        return build_speech_llm(config(tiny_whisper, tiny_llm, **options)).eval()

    return build


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(tensors, True, padding_value=-1)
    return padded, lengths


def make_batch(model: SpeechLLM, rows=(0, 1, 2)) -> dict[str, torch.Tensor]:
    """Return examples whose audio, texts and prompts all differ in length."""
    generator = torch.Generator().manual_seed(5)
    waves = [0.1 * torch.randn(n, generator=generator) for n in (16000, 6000, 30000)]
    columns = {
        "text_ctc": [
            [LABELS.index("<space>" if c == " " else c) for c in sentence]
            for sentence in SENTENCES
        ]
    }
    if model.llm is not None:
        encode = model.llm.tokenizer
        columns["text"] = [
            [*encode(" " + s.capitalize() + ".")["input_ids"], model.llm.eos_id]
            for s in SENTENCES
        ]
        columns["prompt_prefix"] = [[], [1, 2, 3], [5]]
        columns["prompt_suffix"] = [[7, 8], [9], [10, 11, 12, 13]]
    batch = {
        "speech": torch.nn.utils.rnn.pad_sequence([waves[i] for i in rows], True),
        "speech_lengths": torch.tensor([len(waves[i]) for i in rows]),
    }
    for name, values in columns.items():
        padded, lengths = pad([values[i] for i in rows])
        batch[name], batch[name + "_lengths"] = padded, lengths
    return batch


def spliced(model: SpeechLLM, batch: dict) -> tuple[list, list]:
    """Return the embeddings of prefix, speech, suffix and answer, and the labels."""
    embed = model.llm.causal_lm.get_input_embeddings()
    features, frames = model.encoder(batch["speech"], batch["speech_lengths"])
    logits = model.ctc.ctc_lo(features)
    embeddings, sizes = model.bridge(features, frames, logits)
    inputs, labels = [], []
    for row in range(len(embeddings)):
        before, behind, answer = (
            batch[name][row, : batch[name + "_lengths"][row]]
            for name in ("prompt_prefix", "prompt_suffix", "text")
        )
        speech = embeddings[row, : sizes[row]]
        inputs.append(torch.cat([embed(before), speech, embed(behind), embed(answer)]))
        prompt = len(before) + len(speech) + len(behind)
        labels.append(torch.cat([torch.full((prompt,), -100), answer]))
    return inputs, labels


def transformers_loss(model: SpeechLLM, batch: dict, smoothing=0.0) -> torch.Tensor:
    """Return transformers' loss on the answers, with its head at all positions."""
    inputs, labels = spliced(model, batch)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(x)) for x in inputs], True)
    padded = torch.nn.utils.rnn.pad_sequence(inputs, True)
    targets = torch.nn.utils.rnn.pad_sequence(labels, True, padding_value=-100)
    output = model.llm.causal_lm(
        inputs_embeds=padded, attention_mask=mask, labels=targets
    )
    if not smoothing:
        return output.loss  # mean over the targets
    return torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1),
        targets[:, 1:].flatten(),
        reduction="sum",
        label_smoothing=smoothing,
    ) / int((targets >= 0).sum())


@pytest.mark.parametrize("bridge", ["convolution", "ctc_compression", "transcript"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_transformers(make, bridge, smoothing):
    """Logits at the targets only, against ``labels=`` over the whole sequence."""
    model_conf = {
        "ctc_weight": 0.0,
        "label_smoothing": smoothing,
        "autocast": "float32",
    }
    model = make(bridge=bridge, model_conf=model_conf)
    batch = make_batch(model)
    loss, stats, weight = model(**batch)
    expected = transformers_loss(model, batch, smoothing)
    torch.testing.assert_close(loss[0], expected, atol=1e-3, rtol=1e-5)
    assert weight == batch["text_lengths"].sum()
    assert stats["loss_ctc"] is None
    torch.testing.assert_close(stats["loss_att"], stats["loss"])


def test_gradients_equal_transformers(make):
    model = make(model_conf={"ctc_weight": 0.0, "autocast": "float32"})
    batch = make_batch(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any(n.startswith("bridge.") for n in trained)
    assert any("lora_B" in n for n in trained)
    found = torch.autograd.grad(model(**batch)[0], trained.values())
    expected = torch.autograd.grad(transformers_loss(model, batch), trained.values())
    for name, one, other in zip(trained, found, expected):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4, msg=name)


def test_ctc_loss_is_the_mean_over_labels(make):
    model = make(llm=None, bridge=None, model_conf={"ctc_weight": 1.0})
    model.autocast_dtype = torch.float32
    batch = make_batch(model)
    loss, stats, weight = model(**batch)
    features, frames = model.encoder(batch["speech"], batch["speech_lengths"])
    lengths = batch["text_ctc_lengths"]
    logits = model.ctc(features)
    total = sum(
        torch.nn.functional.ctc_loss(
            logits[row, :size, None].log_softmax(2), batch["text_ctc"][row, :count],
            size[None], count[None], reduction="sum",
        )
        for row, (size, count) in enumerate(zip(frames, lengths, strict=True))
    )  # fmt: skip
    torch.testing.assert_close(loss[0], total / lengths.sum())
    assert weight == lengths.sum()
    assert stats["loss_att"] is None
    assert 0 < stats["cer_ctc"]


def test_losses_are_weighted_as_in_espnet(make):
    model = make()
    loss, stats, _ = model(**make_batch(model))
    expected = 0.3 * stats["loss_ctc"] + 0.7 * stats["loss_att"]
    torch.testing.assert_close(loss.detach(), expected)
    assert set(stats) == {"loss", "loss_ctc", "loss_att", "acc", "wer", "cer_ctc"}
    stats = model.train()(**make_batch(model))[1]
    assert set(stats) == {"loss", "loss_ctc", "loss_att", "acc"}


def test_batch_loss_is_the_mean_over_tokens(make):
    """As ESPnet's trainer averages over GPUs, with the weights of each batch."""
    names = {"loss_ctc": "text_ctc_lengths", "loss_att": "text_lengths"}
    for bridge in ("convolution", "transcript"):
        model = make(bridge=bridge)
        batch = make_batch(model)
        together = model(**batch)[1]
        apart = [model(**make_batch(model, [row])) for row in range(3)]
        for name, counts in names.items():
            weights = batch[counts]
            total = sum(a[1][name] * n for a, n in zip(apart, weights))
            mean = total / weights.sum()
            torch.testing.assert_close(together[name], mean, atol=1e-4, rtol=1e-4)
        assert [int(weight) for _, _, weight in apart] == batch["text_lengths"].tolist()


def test_gradients_do_not_grow_with_the_length_of_the_targets(make):
    """A target that is repeated has the same loss and gradient in every copy."""
    model = make(model_conf={"ctc_weight": 0.0, "autocast": "float32"})
    one = make_batch(model, [0])
    copies = {key: torch.cat([value] * 4) for key, value in one.items()}
    weights = [p for p in model.parameters() if p.requires_grad]
    for batch in (one, copies):
        loss, _, weight = model(**batch)
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        batch["found"] = loss.detach(), norm, weight
    torch.testing.assert_close(one["found"][:2], copies["found"][:2])
    assert copies["found"][2] == 4 * one["found"][2]


def test_statistics_of_a_perfect_model(make):
    model = make()
    answers = unpad(*(make_batch(model)[k] for k in ("text", "text_lengths")))
    best = torch.tensor([t for a in answers for t in a])
    words = len(" ".join(SENTENCES).split())
    assert model.teacher_forced_word_errors(best, answers) == (0, words)
    best[0] += 1
    errors, count = model.teacher_forced_word_errors(best, answers)
    assert 0 < errors < 0.5 * words and count == words
    truth = unpad(*(make_batch(model)[k] for k in ("text_ctc", "text_ctc_lengths")))
    frames = torch.tensor([2 * len(t) for t in truth])
    logits = torch.zeros(3, int(frames.max()), len(LABELS))
    for row, labels in zip(logits, truth):
        for place, label in enumerate(labels):
            row[2 * place, label] = row[2 * place + 1, 0] = 9.0
    assert model.ctc_character_errors(logits, frames, truth) == (
        0,
        sum(map(len, truth)),
    )
    assert model.ctc_transcripts(logits, frames) == list(SENTENCES)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_statistics_do_not_change_with_the_loss(make, weight):
    """ESPnet's trainer divides the loss by ``accum_grad`` in place."""
    model = make(model_conf={"ctc_weight": weight, "autocast": "float32"})
    loss, stats, _ = model(**make_batch(model))
    before = {k: v.clone() for k, v in stats.items() if v is not None}
    with torch.no_grad():
        loss /= 4
    assert all(torch.equal(stats[name], value) for name, value in before.items())


def test_text_longer_than_the_speech_gives_a_finite_loss(make):
    """No CTC path exists; loss and gradients must be finite."""
    model = make(llm=None, bridge=None, model_conf={"ctc_weight": 1.0}).train()
    batch = make_batch(model)
    batch["speech_lengths"] = torch.tensor([16000, 6000, 1600])
    loss = model(**batch)[0]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.ctc.ctc_lo.weight.grad).all()


def test_bfloat16_loss_is_close_to_float32(make):
    exact, half = make(), make()
    half.autocast_dtype = torch.bfloat16
    batch = make_batch(exact)
    expected, found = exact(**batch)[0], half(**batch)[0]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.03)


# Checkpoints


def test_checkpoint_has_trained_tensors_only(make, tiny_whisper):
    model = make()
    names = set(model.state_dict())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == trained
    assert {n.split(".")[0] for n in names} == {"bridge", "ctc", "llm"}
    assert all("lora_" in n for n in names if n.startswith("llm."))
    encoder_conf = {"model": str(tiny_whisper), "trainable_layers": 1}
    tuned = make(encoder_conf=encoder_conf)
    encoder = {n for n in tuned.state_dict() if n.startswith("encoder.")}
    assert encoder and all(".layers.1." in n or "layer_norm" in n for n in encoder)


def test_checkpoint_includes_a_frozen_ctc_branch(make):
    """It is trained in the warm-up, so it is in no pretrained model."""
    model = make(model_conf={"ctc_weight": 0.0})
    assert not any(p.requires_grad for p in model.ctc.parameters())
    assert "ctc.ctc_lo.weight" in model.state_dict()


def test_checkpoint_round_trip(make):
    first, second = make(seed=1), make(seed=2)
    batch = make_batch(first)
    expected = first(**batch)[0]
    assert not torch.allclose(second(**batch)[0], expected)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(**batch)[0], expected)
    assert set(second.state_dict()) == set(first.state_dict())


@pytest.mark.parametrize("tuning", ["lora", "frozen", "full"])
def test_checkpoint_has_random_weights_that_are_not_trained(make, tuning, tiny_llm):
    conf = {"model": str(tiny_llm), "dtype": "float32", "tuning": tuning}
    conf |= {"random_init": True, "lora": {"r": 2}}
    first, second = make(seed=1, llm_conf=conf), make(seed=2, llm_conf=conf)
    batch = make_batch(first)
    expected = first(**batch)[0]
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(**batch)[0], expected)


def test_checkpoint_keeps_tensors_of_the_warm_up(make, tiny_whisper):
    tuned = {"model": str(tiny_whisper), "trainable_layers": 1}
    warm = make(
        llm=None, bridge=None, encoder_conf=tuned, model_conf={"ctc_weight": 1.0}
    )
    with torch.no_grad():
        for parameter in warm.encoder.parameters():
            parameter.add_(0.1)
    model = make(seed=2)
    before = set(model.state_dict())
    model.load_state_dict(warm.state_dict(), strict=False)
    assert set(model.state_dict()) == before | set(warm.state_dict())
    third = make(seed=3)
    third.load_state_dict(model.state_dict())
    batch = make_batch(model)
    assert torch.equal(third(**batch)[0], model(**batch)[0])


def test_checkpoint_has_the_buffers_of_trained_modules(make, tmp_path, caplog):
    """BatchNorm's statistics keep those of the checkpoint, not those of the hub.

    Trainings of older versions have changed them.
    """
    folder = str(write_tiny_conformer(tmp_path))
    options = {
        "encoder": "auto",
        "encoder_conf": {"model": folder, "trainable_layers": 1},
        "llm": None,
        "bridge": None,
        "model_conf": {"ctc_weight": 1.0, "autocast": "float32"},
    }
    first, second, third = (make(seed=seed, **options) for seed in (1, 2, 3))
    batch = make_batch(first)
    speech = batch["speech"], batch["speech_lengths"]
    statistics = "encoder.encoder.encoder.layers.1.conv_module.batch_norm.running_mean"
    first.get_buffer(statistics).add_(1)
    expected = first.encode(*speech)[0]
    assert not torch.allclose(second.encode(*speech)[0], expected, atol=1e-3)
    state = first.train().state_dict()
    first(**batch)  # changes none
    assert torch.equal(first.eval().encode(*speech)[0], expected)
    assert {n for n in state if "batch_norm.running_mean" in n} == {statistics}
    second.load_state_dict(state)
    assert torch.equal(second.encode(*speech)[0], expected)
    parameters = {n: p for n, p in state.items() if n in dict(first.named_parameters())}
    third.load_state_dict(parameters)  # of release 0.2
    assert "3 buffers are not in the checkpoint" in caplog.text


def test_old_checkpoint_of_an_integer_layer_keeps_its_features(make, tmp_path):
    """Release 0.2 applied HuBERT's last norm after any layer."""
    folder = str(write_tiny_hubert(tmp_path, "layer"))
    options = {
        "encoder": "hubert",
        "encoder_conf": {"model": folder, "layer": 1},
        "llm": None,
        "bridge": None,
        "model_conf": {"ctc_weight": 1.0, "autocast": "float32"},
    }
    new, old = make(**options), make(**options)
    batch = make_batch(new)
    speech = batch["speech"], batch["speech_lengths"]
    features, lengths, _ = new.encode(*speech)
    state = new.state_dict()
    old.load_state_dict({n: v for n, v in state.items() if n != "encoder.layer_output"})
    found = old.encode(*speech)[0]
    norm = new.encoder.encoder.encoder.layer_norm
    expected = torch.nn.functional.layer_norm(
        features, norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    for row, other, length in zip(found, expected, lengths):
        torch.testing.assert_close(row[:length], other[:length])
    again = make(seed=2, **options)
    again.load_state_dict(state)
    assert torch.equal(again.encode(*speech)[0], features)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("layer", ["last", 1])
def test_every_trained_parameter_has_a_gradient(make, tiny_whisper, weight, layer):
    """Otherwise DistributedDataParallel stops in the second step."""
    model = make(
        encoder_conf={
            "model": str(tiny_whisper),
            "layer": layer,
            "trainable_layers": "all",
        },
        model_conf={"ctc_weight": weight, "autocast": "float32"},
    ).train()
    model(**make_batch(model))[0].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, p in trained.items() if p.grad is None]
    parts = {name.split(".")[0] for name in trained}
    assert ("ctc" in parts) == (weight > 0)
    assert ("bridge" in parts) == ("llm" in parts) == (weight < 1)


def test_mismatched_checkpoint_names_the_tensors(make):
    model = make()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="1 tensors are not in this model: bridge.x"):
        model.load_state_dict({**state, "bridge.x": torch.zeros(1)})
    short = {k: v for k, v in state.items() if k != "ctc.ctc_lo.bias"}
    with pytest.raises(RuntimeError, match="missing in the checkpoint: ctc.ctc_lo"):
        model.load_state_dict(short)
    model.load_state_dict(short, strict=False)
    wide = {**state, "ctc.ctc_lo.bias": torch.zeros(99)}
    with pytest.raises(RuntimeError, match="another shape .*: ctc.ctc_lo.bias"):
        model.load_state_dict(wide)


# Parts that do not fit


def test_parts_that_do_not_fit_each_other(make):
    cases = [
        ({"model_conf": {"ctc_weight": 1.5}}, "from 0 to 1"),
        ({"token_list": []}, "without a CTC vocabulary"),
        ({"llm": None, "bridge": None}, "without an LLM"),
        ({"bridge": None}, "name a bridge"),
        (
            {
                "token_list": [],
                "bridge": "transcript",
                "model_conf": {"ctc_weight": 0.0},
            },
            "this bridge reads CTC",
        ),
        ({"model_conf": {"autocast": "int8"}}, "dtype 'int8'"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_model_without_ctc(make):
    model = make(token_list=[], model_conf={"ctc_weight": 0.0, "autocast": "float32"})
    assert model.ctc is None
    loss, stats, _ = model(**make_batch(model))
    assert torch.isfinite(loss)
    assert "cer_ctc" not in stats


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_llm_tuning(make, tiny_llm, tuning):
    model = make(
        llm_conf={"model": str(tiny_llm), "dtype": "float32", "tuning": tuning}
    ).train()
    trained = {n for n, p in model.llm.named_parameters() if p.requires_grad}
    total = len(list(model.llm.parameters()))
    assert model.llm.training == (tuning != "frozen")
    if tuning == "frozen":
        assert not trained
    elif tuning == "full":
        assert len(trained) == total
    else:
        assert trained and all("lora_" in name for name in trained)
        adapted = {name.split(".lora_")[0].split(".")[-1] for name in trained}
        assert {"q_proj", "o_proj", "down_proj"} <= adapted
        assert "lm_head" not in adapted
    model(**make_batch(model))[0].backward()


def test_lora_on_named_layers(make, tiny_llm):
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    model = make(llm_conf={"model": str(tiny_llm), "lora": lora})
    adapted = {
        name.split(".lora_")[0].split(".")[-1]
        for name, p in model.llm.named_parameters()
        if p.requires_grad
    }
    assert adapted == {"q_proj", "v_proj"}
