"""Encoders: batch invariance, equality with transformers, freezing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tensors import live_outputs
from tiny_models import write_tiny_hubert

from speechllm.audio.io import load_audio
from speechllm.models.encoder import length_mask
from speechllm.models.hubert_encoder import HubertEncoder
from speechllm.models.whisper_encoder import WhisperEncoder

KINDS = ("hubert-group", "hubert-layer", "wav2vec2-layer", "wavlm-group", "whisper")
# Difference of float32 features to those of the utterance alone; relative to the
# largest feature if that is above one (up to 20 in pretrained Whisper).
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, tiny_whisper):
    """One tiny encoder of each kind."""
    root = tmp_path_factory.mktemp("encoders")
    made = {"whisper": WhisperEncoder(str(tiny_whisper))}
    for name in KINDS[:-1]:
        kind, norm = name.split("-")
        made[name] = HubertEncoder(str(write_tiny_hubert(root / name, norm, kind)))
    return {name: encoder.eval() for name, encoder in made.items()}


def pad(waves: list[torch.Tensor], noisy: bool = False):
    """Return a padded batch; with ``noisy`` the padding is noise instead of zeros."""
    lengths = torch.tensor([len(w) for w in waves])
    speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    if noisy:
        noise = torch.randn(speech.shape)
        speech = torch.where(length_mask(lengths, speech.shape[1]), speech, noise)
    return speech, lengths


@torch.inference_mode()
def alone(encoder, wave: torch.Tensor) -> torch.Tensor:
    features, lengths = encoder(wave[None], torch.tensor([len(wave)]))
    assert lengths.tolist() == [features.shape[1]]
    return features[0]


@torch.inference_mode()
def check_batch(encoder, waves, noisy=False, tolerance=TOLERANCE):
    """Compare the features in a batch with those of each utterance alone."""
    features, lengths = encoder(*pad(waves, noisy))
    for row, length, wave in zip(features, lengths.tolist(), waves):
        expected = alone(encoder, wave)
        assert length == len(expected)
        scale = max(1.0, expected.abs().max().item())
        difference = (row[:length] - expected).abs().max().item() / scale
        assert difference <= tolerance, f"{len(wave)} samples: {difference}"
        assert not row[length:].any()


def class_and_folder(kind: str, tmp_path, tiny_whisper):
    """Return the class and a tiny model of one of ``KINDS``."""
    if kind == "whisper":
        return WhisperEncoder, tiny_whisper
    name, norm = kind.split("-")
    return HubertEncoder, write_tiny_hubert(tmp_path / kind, norm, name)


def check_gradient_checkpointing(make, folder, waves) -> None:
    """Gradients are equal; activations within the layers are freed."""
    gradients, alive = [], []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        encoder = make(
            str(folder), trainable_layers=2, gradient_checkpointing=checkpointing
        ).train()
        live = live_outputs(encoder.layers)
        torch.manual_seed(4)  # of dropout
        features, _ = encoder(*pad(waves))
        alive.append(live())
        features.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)
    assert alive[1] < 0.2 * alive[0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1600, 20 * 16000), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
)
def test_features_do_not_depend_on_the_batch(encoders, kind, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    waves = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    check_batch(encoders[kind], waves)
    check_batch(encoders[kind], waves[::-1], noisy=True)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_of_very_different_lengths(encoders, kind):
    generator = torch.Generator().manual_seed(1)
    seconds = [0.1, 20.0, 0.37, 7.77, 1.0, 12.3]
    waves = [torch.randn(int(16000 * s), generator=generator) * 0.1 for s in seconds]
    check_batch(encoders[kind], waves)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_samples_give_one_frame(encoders, kind):
    generator = torch.Generator().manual_seed(1)
    lengths = (1, 200, 201, 399, 400, 401, 4000)
    waves = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    check_batch(encoders[kind], waves)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_gives_finite_features(encoders, kind):
    assert torch.isfinite(alone(encoders[kind], torch.zeros(3000))).all()


@pytest.mark.slow
def test_features_of_pretrained_whisper_do_not_depend_on_the_batch(
    whisper_base, speech_file
):
    encoder = WhisperEncoder(str(whisper_base)).eval().double()
    speech = torch.from_numpy(load_audio(speech_file)).double()
    waves = [speech[:9000], speech, speech[20000:41234], speech[:1600]]
    check_batch(encoder, waves, tolerance=1e-12)
    # in float32 the kernels of a batch may round differently: 2.5e-5 on a Xeon with AMX
    check_batch(encoder.float(), [wave.float() for wave in waves], tolerance=1e-4)


def test_log_mel_equals_transformers(tiny_whisper, speech_file):
    from transformers import WhisperFeatureExtractor

    encoder = WhisperEncoder(str(tiny_whisper))
    extractor = WhisperFeatureExtractor()
    speech = load_audio(speech_file)
    for wave in (speech, speech[:12345], speech[5000:5400]):
        expected = extractor(
            wave, sampling_rate=16000, padding=False, return_tensors="np"
        ).input_features[0]
        found = encoder.log_mel(torch.from_numpy(wave)).numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-5)


@torch.inference_mode()
def test_thirty_seconds_equal_transformers_whisper(tiny_whisper):
    """At 30 s there is no padding, so both must agree."""
    from transformers import WhisperFeatureExtractor, WhisperModel

    generator = torch.Generator().manual_seed(2)
    wave = torch.randn(480000, generator=generator) * 0.1
    mel = WhisperFeatureExtractor()(
        wave.numpy(), sampling_rate=16000, return_tensors="pt"
    ).input_features
    whisper = WhisperModel.from_pretrained(tiny_whisper).encoder.eval()
    expected = whisper(mel).last_hidden_state[0]
    found = alone(WhisperEncoder(str(tiny_whisper)).eval(), wave)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS[:-1])
@torch.inference_mode()
def test_one_utterance_equals_transformers_model(tmp_path, kind):
    from transformers import AutoModel

    name, norm = kind.split("-")
    folder = write_tiny_hubert(tmp_path / "model", norm, name)
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(3))
    model = AutoModel.from_pretrained(folder).eval()
    expected = model(wave[None]).last_hidden_state[0]
    found = alone(HubertEncoder(str(folder), normalize=False).eval(), wave)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    scaled = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
    expected = model(scaled[None]).last_hidden_state[0]
    found = alone(HubertEncoder(str(folder), normalize=True).eval(), wave)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_normalisation_follows_the_preprocessor_config(tmp_path):
    group = write_tiny_hubert(tmp_path / "group", "group")
    layer = write_tiny_hubert(tmp_path / "layer", "layer")
    assert not HubertEncoder(str(group)).normalize
    assert HubertEncoder(str(layer)).normalize
    (group / "preprocessor_config.json").write_text('{"do_normalize": true}')
    assert HubertEncoder(str(group)).normalize


@pytest.mark.parametrize("kind", ["hubert-group", "hubert-layer", "whisper"])
@torch.inference_mode()
def test_layer_selection(tmp_path, tiny_whisper, kind):
    """An intermediate layer and the weighted sum of all layers."""
    folder = (
        tiny_whisper
        if kind == "whisper"
        else write_tiny_hubert(tmp_path / kind, kind.removeprefix("hubert-"))
    )
    make = WhisperEncoder if kind == "whisper" else HubertEncoder
    wave = torch.randn(9000, generator=torch.Generator().manual_seed(3)) * 0.1
    first = make(str(folder), layer=1).eval()
    assert len(first.layers) == 1
    last = make(str(folder)).eval()
    mixed = make(str(folder), layer="weighted").eval()
    assert mixed.layer_weights.shape == (len(last.layers) + 1,)
    assert [n for n, p in mixed.named_parameters() if p.requires_grad] == [
        "layer_weights"
    ]
    mixed.layer_weights.data = torch.tensor([-50.0, -50.0, 50.0])
    if kind != "hubert-layer":  # whose states are those before the last norm
        torch.testing.assert_close(alone(mixed, wave), alone(last, wave))
    mixed.layer_weights.data = torch.tensor([-50.0, 50.0, -50.0])
    torch.testing.assert_close(alone(mixed, wave), alone(first, wave))
    assert not torch.allclose(alone(first, wave), alone(last, wave), atol=1e-2)


@pytest.mark.parametrize("kind", ["hubert-group", "hubert-layer", "whisper"])
@torch.inference_mode()
def test_integer_layer_equals_transformers_hidden_states(tmp_path, tiny_whisper, kind):
    """The output of a layer has no norm of a later one, for every encoder."""
    from transformers import AutoModel, WhisperFeatureExtractor, WhisperModel

    generator = torch.Generator().manual_seed(2)
    wave = torch.randn(480000, generator=generator) * 0.1
    if kind == "whisper":
        mel = WhisperFeatureExtractor()(
            wave.numpy(), sampling_rate=16000, return_tensors="pt"
        ).input_features
        model = WhisperModel.from_pretrained(tiny_whisper).encoder.eval()
        states = model(mel, output_hidden_states=True).hidden_states
        found = alone(WhisperEncoder(str(tiny_whisper), layer=1).eval(), wave)
        torch.testing.assert_close(found, states[1][0], atol=1e-4, rtol=0)
        return
    wave = wave[:9000]
    folder = write_tiny_hubert(tmp_path / kind, kind.removeprefix("hubert-"))
    model = AutoModel.from_pretrained(folder).eval()
    states = model(wave[None], output_hidden_states=True).hidden_states
    for layer in (1, 2):
        encoder = HubertEncoder(str(folder), layer=layer, normalize=False).eval()
        found = alone(encoder, wave)
        torch.testing.assert_close(found, states[layer][0], atol=1e-5, rtol=0)
    if kind == "hubert-layer":  # checkpoints of release 0.2
        encoder.use_old_layer_output()
        normed = model.encoder.layer_norm(states[2][0])
        torch.testing.assert_close(alone(encoder, wave), normed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 3, "first"])
def test_invalid_layer(tiny_whisper, layer):
    with pytest.raises(ValueError, match="encoder layer"):
        WhisperEncoder(str(tiny_whisper), layer=layer)


def trained(encoder) -> set[str]:
    """Return the names of the modules with trained parameters."""
    names = [n for n, p in encoder.named_parameters() if p.requires_grad]
    return {".".join(n.split(".")[:-1]) for n in names}


def test_freezing(tiny_whisper, encoders, tmp_path):
    assert not trained(WhisperEncoder(str(tiny_whisper)))
    top = trained(WhisperEncoder(str(tiny_whisper), trainable_layers=1))
    assert "encoder.layer_norm" in top
    assert {n.split(".")[2] for n in top if ".layers." in n} == {"1"}
    everything = trained(WhisperEncoder(str(tiny_whisper), trainable_layers="all"))
    assert {"encoder.conv1", "encoder.layer_norm"} <= everything
    assert "encoder.embed_positions" not in everything
    folder = write_tiny_hubert(tmp_path / "hubert", "group")
    whole = trained(HubertEncoder(str(folder), trainable_layers="all"))
    assert not any("feature_extractor" in name for name in whole)
    assert any("feature_projection" in name for name in whole)
    for wrong in (-1, 3, "some"):
        with pytest.raises(ValueError, match="trainable_layers"):
            WhisperEncoder(str(tiny_whisper), trainable_layers=wrong)


def test_frozen_modules_have_no_dropout(tmp_path):
    folder = write_tiny_hubert(tmp_path / "hubert", "group")  # dropout 0.1
    wave = torch.randn(4000)[None] * 0.1, torch.tensor([4000])
    frozen = HubertEncoder(str(folder)).train()
    assert torch.equal(frozen(*wave)[0], frozen(*wave)[0])
    trained = HubertEncoder(str(folder), trainable_layers=1).train()
    assert not torch.equal(trained(*wave)[0], trained(*wave)[0])
    assert torch.equal(trained.eval()(*wave)[0], trained.eval()(*wave)[0])


def test_whisper_dropout_is_in_trained_layers_only(tiny_whisper):
    encoder = WhisperEncoder(str(tiny_whisper), trainable_layers=1, dropout=0.5)
    assert [layer.dropout for layer in encoder.layers][-1] == 0.5
    assert all(layer.dropout == 0 for layer in encoder.layers[:-1])
    speech = torch.randn(1, 16000)
    lengths = torch.tensor([16000])
    encoder.train()
    first, second = encoder(speech, lengths)[0], encoder(speech, lengths)[0]
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder(speech, lengths)[0], encoder(speech, lengths)[0])


def test_gradients_reach_trained_parameters_only(tmp_path):
    folder = write_tiny_hubert(tmp_path / "hubert", "group")
    encoder = HubertEncoder(str(folder), trainable_layers=1).train()
    waves = [torch.randn(n) * 0.1 for n in (4000, 9000)]
    encoder(*pad(waves))[0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("layer", ["last", 1, "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_has_a_gradient(tmp_path, tiny_whisper, kind, layer):
    """Otherwise DistributedDataParallel stops in the second step."""
    make, folder = class_and_folder(kind, tmp_path, tiny_whisper)
    waves = [torch.randn(n) * 0.1 for n in (4000, 9000)]
    for count in (1, "all"):
        encoder = make(str(folder), layer=layer, trainable_layers=count).train()
        encoder(*pad(waves))[0].square().sum().backward()
        without = [n for n, p in encoder.named_parameters() if p.requires_grad]
        without = [n for n in without if encoder.get_parameter(n).grad is None]
        assert not without


@pytest.mark.parametrize("kind", KINDS)
def test_lora_of_an_encoder(tmp_path, tiny_whisper, kind):
    """Only adapters are trained, all have a gradient, and merging keeps features."""
    from speechllm.inference.loading import merge_adapters

    make, folder = class_and_folder(kind, tmp_path, tiny_whisper)
    plain = make(str(folder)).eval()
    encoder = make(str(folder), lora={"r": 2}).train()
    waves = [torch.randn(n) * 0.1 for n in (4000, 9000)]
    names = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert names and all(".lora_" in n for n in names)
    encoder(*pad(waves))[0].square().sum().backward()
    assert all(encoder.get_parameter(n).grad is not None for n in names)
    encoder.eval()
    assert torch.equal(alone(encoder, waves[0]), alone(plain, waves[0]))
    with torch.no_grad():
        for name in names:
            encoder.get_parameter(name).add_(0.1)
    adapted = alone(encoder, waves[0])
    assert not torch.allclose(adapted, alone(plain, waves[0]), atol=1e-2)
    merge_adapters(encoder)
    torch.testing.assert_close(alone(encoder, waves[0]), adapted, atol=1e-4, rtol=1e-4)
    assert not any("lora" in n for n, _ in encoder.named_parameters())


def test_lora_excludes_trained_layers_and_wavlm_attention(tmp_path, tiny_whisper):
    with pytest.raises(ValueError, match="exclude each other"):
        WhisperEncoder(str(tiny_whisper), lora={}, trainable_layers=1)
    folder = write_tiny_hubert(tmp_path, "group", "wavlm")
    with pytest.raises(ValueError, match="no effect on the attention"):
        HubertEncoder(str(folder), lora={"target_modules": ["q_proj"]})


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_of_an_encoder(tmp_path, tiny_whisper, kind):
    make, folder = class_and_folder(kind, tmp_path, tiny_whisper)
    waves = [torch.randn(n) * 0.1 for n in (4000, 9000)]
    check_gradient_checkpointing(make, folder, waves)


def test_specaug_needs_a_log_mel_input(tmp_path):
    folder = write_tiny_hubert(tmp_path, "group")
    with pytest.raises(ValueError, match="specaug is for encoders with a log-mel"):
        HubertEncoder(str(folder), specaug={"apply_time_warp": False})


def test_specaug_is_applied_in_training_only(tiny_whisper):
    specaug = {
        "apply_time_warp": False,
        "freq_mask_width_range": [10, 27],
        "time_mask_width_ratio_range": [0.0, 0.1],
    }
    encoder = WhisperEncoder(str(tiny_whisper), specaug=specaug)
    wave = torch.randn(1, 16000) * 0.1, torch.tensor([16000])
    torch.manual_seed(0)
    encoder.train()
    assert not torch.equal(encoder(*wave)[0], encoder(*wave)[0])
    encoder.eval()
    plain = WhisperEncoder(str(tiny_whisper)).eval()
    assert torch.equal(encoder(*wave)[0], plain(*wave)[0])


def test_utterance_too_long_for_whisper(tiny_whisper):
    encoder = WhisperEncoder(str(tiny_whisper)).eval()
    assert encoder.max_samples == 480000
    speech, lengths = torch.zeros(1, 481000), torch.tensor([481000])
    with pytest.raises(ValueError, match=r"30\.1 s: Whisper.* takes at most 30"):
        encoder(speech, lengths)


def test_random_init(tiny_whisper):
    torch.manual_seed(8)
    built = WhisperEncoder(str(tiny_whisper), random_init=True)
    loaded = WhisperEncoder(str(tiny_whisper))
    assert built.encoder.conv1.weight.shape == loaded.encoder.conv1.weight.shape
    assert not torch.equal(built.encoder.conv1.weight, loaded.encoder.conv1.weight)
