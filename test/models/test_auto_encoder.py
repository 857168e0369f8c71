"""``encoder: auto``: WavLM, Wav2Vec2-Conformer and w2v-BERT against transformers."""

from __future__ import annotations

import pytest
import torch
from test_encoder import (
    alone,
    check_batch,
    check_gradient_checkpointing,
    pad,
)
from tiny_models import (
    SIZES,
    write_tiny_conformer,
    write_tiny_parakeet,
    write_tiny_w2v_bert,
    write_tiny_wavlm,
    write_tiny_whisper,
)

from speechllm.inference.loading import merge_adapters
from speechllm.models.encoders import AutoEncoder

KINDS = ("wavlm", "conformer", "rotary", "w2v-bert", "parakeet")
SPECAUG = {
    "apply_time_warp": False,
    "freq_mask_width_range": [10, 27],
    "time_mask_width_ratio_range": [0.0, 0.1],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    return {
        "wavlm": str(write_tiny_wavlm(root / "wavlm")),
        "conformer": str(write_tiny_conformer(root / "conformer")),
        "rotary": str(write_tiny_conformer(root / "rotary", "rotary")),
        "w2v-bert": str(write_tiny_w2v_bert(root / "bert")),
        "parakeet": str(write_tiny_parakeet(root / "parakeet")),
    }


def noise(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) * 0.1 for n in lengths]


@pytest.mark.parametrize("kind", KINDS)
def test_features_do_not_depend_on_the_batch(folders, kind):
    encoder = AutoEncoder(folders[kind]).eval()
    waves = noise(16000, 7000, 23456, 7160)
    check_batch(encoder, waves)
    check_batch(encoder, waves[::-1], noisy=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_samples_give_finite_features(folders, kind):
    encoder = AutoEncoder(folders[kind]).eval()
    check_batch(encoder, noise(1, 200, 399, 401, 4000))
    assert torch.isfinite(alone(encoder, torch.zeros(1))).all()


def test_w2v_bert_encodes_a_batch_at_once(folders):
    encoder = AutoEncoder(folders["w2v-bert"]).eval()
    sizes = []
    encoder.layers[0].register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    encoder(*pad(noise(16000, 7000, 9000)))
    assert sizes == [3]


def plain_encoder(folders, kind: str, **options) -> torch.nn.Module:
    """Load the encoder with transformers alone."""
    from transformers import AutoModel, ParakeetEncoder

    owner = ParakeetEncoder if kind == "parakeet" else AutoModel
    return owner.from_pretrained(folders[kind], **options).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_layers_equal_transformers(folders, kind):
    from transformers import AutoFeatureExtractor

    (wave,) = noise(12000)
    model = plain_encoder(folders, kind)
    extractor = AutoFeatureExtractor.from_pretrained(folders[kind])
    inputs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    output = model(**inputs, output_hidden_states=True)
    last = alone(AutoEncoder(folders[kind]).eval(), wave)
    torch.testing.assert_close(last, output.last_hidden_state[0])
    for layer in (1, 2):
        encoder = AutoEncoder(folders[kind], layer=layer).eval()
        expected = output.hidden_states[layer][0]
        torch.testing.assert_close(alone(encoder, wave), expected)
    with pytest.raises(ValueError, match="encoder layer 3: the model has 2"):
        AutoEncoder(folders[kind], layer=3)


@torch.inference_mode()
def test_checkpoints_of_release_0_2_keep_the_norm_of_an_integer_layer(folders):
    (wave,) = noise(12000)
    encoder = AutoEncoder(folders["conformer"], layer=1).eval()
    expected = encoder.encoder.encoder.layer_norm(alone(encoder, wave))
    encoder.use_old_layer_output()
    torch.testing.assert_close(alone(encoder, wave), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_bfloat16_equals_transformers(folders, kind):
    from transformers import AutoFeatureExtractor

    encoder = AutoEncoder(folders[kind]).eval().bfloat16()
    model = plain_encoder(folders, kind, dtype=torch.bfloat16)
    extractor = AutoFeatureExtractor.from_pretrained(folders[kind])
    for wave in noise(16000, 7000):
        inputs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
        expected = model(**inputs.to(torch.bfloat16)).last_hidden_state[0]
        found = alone(encoder, wave)
        assert found.dtype == torch.bfloat16
        # from_pretrained keeps the frequencies of positions in float32
        exact = kind not in ("rotary", "parakeet")
        tolerance = {} if exact else {"atol": 0.03, "rtol": 0.02}
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_per_second(folders, kind):
    encoder = AutoEncoder(folders[kind]).train()
    expected = 12.5 if kind == "parakeet" else 50.0
    assert encoder.num_frames_per_second == expected
    assert encoder.training


@pytest.mark.parametrize("head", ["CTC", "RNNT", "TDT"])
@torch.inference_mode()
def test_parakeet_is_read_without_its_head(tmp_path, head):
    """The hub has each size with these heads, in one folder with the encoder."""
    import transformers

    torch.manual_seed(1)
    sizes = {"subsampling_conv_channels": 16, "num_mel_bins": 80, **SIZES}
    options = {"vocab_size": 20, "encoder_config": sizes}
    if head == "CTC":
        options["pad_token_id"] = 19
    else:
        options |= {"decoder_hidden_size": 16, "blank_token_id": 19}
    config = getattr(transformers, f"Parakeet{head}Config")(**options)
    model = getattr(transformers, f"ParakeetFor{head}")(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ParakeetFeatureExtractor().save_pretrained(tmp_path)
    (wave,) = noise(16000)
    extractor = transformers.ParakeetFeatureExtractor()
    inputs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = model.encoder(**inputs).last_hidden_state[0]
    encoder = AutoEncoder(str(tmp_path)).eval()
    assert encoder.output_size == 32
    torch.testing.assert_close(alone(encoder, wave), expected)


@pytest.mark.parametrize("kind", ["parakeet", "conformer"])
def test_training_keeps_the_statistics_of_batch_normalisation(folders, kind):
    """Those of one utterance would replace the pretrained ones."""
    encoder = AutoEncoder(folders[kind], trainable_layers="all").train()
    before = {n: b.clone() for n, b in encoder.named_buffers() if "running" in n}
    encoder(*pad(noise(16000, 9000)))
    after = dict(encoder.named_buffers())
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_fixed_length_has_no_frame_rate(tmp_path):
    from transformers import WhisperFeatureExtractor

    write_tiny_whisper(tmp_path)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="1500 frames for any length"):
        _ = AutoEncoder(str(tmp_path)).eval().num_frames_per_second


def test_specaug(folders):
    encoder = AutoEncoder(folders["w2v-bert"], specaug=SPECAUG)
    plain = AutoEncoder(folders["w2v-bert"]).train()
    (wave,) = noise(16000)
    speech = wave[None], torch.tensor([16000])
    masked = encoder.train().inputs(wave)["input_features"]
    mel = masked.reshape(-1, 80)  # two frames of 80 bins are stacked
    assert ((mel == 0).all(0).any() or (mel == 0).all(1).any()).item()
    assert not torch.equal(encoder(*speech)[0], plain(*speech)[0])
    encoder.eval()
    assert torch.equal(encoder(*speech)[0], plain.eval()(*speech)[0])
    with pytest.raises(ValueError, match="specaug is for encoders with a log-mel"):
        AutoEncoder(folders["wavlm"], specaug=SPECAUG)


@pytest.mark.parametrize("layer", ["last", 1, "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_has_a_gradient(folders, kind, layer):
    """Otherwise DistributedDataParallel stops in the second step."""
    for count in (1, "all"):
        encoder = AutoEncoder(folders[kind], layer=layer, trainable_layers=count)
        encoder.train()
        encoder(*pad(noise(4000, 9000)))[0].square().sum().backward()
        trained = [(n, p) for n, p in encoder.named_parameters() if p.requires_grad]
        assert trained
        assert not [n for n, p in trained if p.grad is None]


@pytest.mark.parametrize("kind", ["parakeet", "adapter"])
def test_no_layer_is_dropped_in_training(tmp_path, kind):
    """Modules of some models copy ``layerdrop`` of the config."""
    import transformers

    if kind == "parakeet":
        options = {"subsampling_conv_channels": 16, "num_mel_bins": 80}
        config = transformers.ParakeetEncoderConfig(**SIZES, **options, layerdrop=1.0)
        transformers.ParakeetFeatureExtractor().save_pretrained(tmp_path)
    else:
        options = {"add_adapter": True, "conv_depthwise_kernel_size": 3}
        config = transformers.Wav2Vec2BertConfig(**SIZES, **options, layerdrop=1.0)
        transformers.SeamlessM4TFeatureExtractor().save_pretrained(tmp_path)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    encoder = AutoEncoder(str(tmp_path), trainable_layers="all").train()
    layers = list(encoder.layers)
    if kind == "adapter":
        layers += encoder.encoder.adapter.layers
    calls = []
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    encoder(*pad(noise(16000)))
    assert calls == layers


@pytest.mark.parametrize("kind", KINDS)
def test_lora(folders, kind):
    encoder = AutoEncoder(folders[kind], lora={"r": 2}).train()
    trained = [(n, p) for n, p in encoder.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in n for n, _ in trained)
    encoder(*pad(noise(4000, 9000)))[0].square().sum().backward()
    assert all(p.grad is not None for _, p in trained)
    with torch.no_grad():
        for _, parameter in trained:
            parameter.add_(0.1)
    (wave,) = noise(9000)
    encoder.eval()
    expected = alone(encoder, wave)
    merge_adapters(encoder)
    torch.testing.assert_close(alone(encoder, wave), expected, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(folders, kind):
    check_gradient_checkpointing(AutoEncoder, folders[kind], noise(4000, 9000))
