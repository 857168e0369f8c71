"""Estimate of a training's parameters, memory and time, without loading weights.

Parameters are counted on models without storage. The memory of activations is the peak
of a training step of the same model, simulated without storage by
:mod:`speechllm.training.memory_simulation` with few LLM layers and extrapolated to all.
Everything else is arithmetic:

* full weights, adapters and gradients are in float32; AdamW keeps two numbers for each
  trained one (Kingma and Ba 2015); frozen LLM weights are in ``dtype``, or in 4.127
  bits with double quantisation (Dettmers et al. 2023, section 3);
* AdamW and Adam that are not ``fused`` need another number for each trained one while
  they update (PyTorch's ``foreach`` implementation, the default on a GPU);
* a weight costs 2 operations a position in the forward pass, 2 for the gradient of its
  input, 2 more if it is trained, and 2 if its layer is recomputed.

The CTC layer is not counted. One GPU processes the whole batch here: with several, a
batch is divided among them. Measured peaks are in the documentation of
:mod:`speechllm.training.memory_simulation`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from speechllm.audio.io import SAMPLING_RATE
from speechllm.pretrained.model_folder import NO_CODE
from speechllm.text.hotword_lists import MAX_TOKENS
from speechllm.training.amount_of_speech import (
    UTTERANCE_SECONDS,
    batch_seconds,
    describe_amount,
    training_hours,
)
from speechllm.training.model_shapes import load_shape
from speechllm.training.replace_models import ENCODER_KINDS
from speechllm.utils.errors import UserError

GIB = 2**30
TOKENS_PER_SECOND = 8.0  # assumed for transcript and translation together
PROMPT_TOKENS = 20  # assumed
RESERVE = 1.5 * GIB  # assumed for driver, kernels and fragmentation
FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes of a weight, scales included


@dataclass(frozen=True)
class Estimate:
    """Memory of a training on one GPU, in bytes, and its floating-point operations.

    Attributes:
        parameters, trainable: numbers of parameters.
        weights, gradients, optimizer: bytes, for any batch.
        activations: peak bytes of a batch.
        update: bytes that the optimizer takes while it updates.
        operations: floating-point operations for one hour of speech.
    """

    parameters: int
    trainable: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    update: float
    operations: float

    @property
    def total(self) -> float:
        """Total bytes, without the driver's."""
        kept = self.weights + self.gradients + self.optimizer
        return kept + max(self.activations, self.update)


def estimate(config: dict, attention: str | None = None, part: int = 1) -> Estimate:
    """Estimate memory and operations of a training.

    Args:
        config: a training configuration with encoder, bridge and LLM.
        attention: the LLM's attention implementation in transformers; None: that of a
            training on a GPU.
        part: the batch is divided by this number.

    Raises:
        UserError: a model's ``config.json`` cannot be found, or a part is unknown.
    """
    config = {"encoder": "whisper", "bridge": "convolution", **config}
    if not config.get("llm", "causal_lm"):
        raise UserError(
            "a CTC warm-up has no LLM: estimate the training that follows it"
        )
    from speechllm.training.memory_simulation import simulate_frame_rate

    try:
        encoder_config = load_shape(config["encoder_conf"]["model"], "audio_encoder")
        llm_config = load_shape(config["llm_conf"]["model"])
        encoder = build_encoder(config, encoder_config)
        llm = build_llm(config["llm_conf"], llm_config)
        bridge = build_bridge(config, encoder.output_size, llm.hidden_size)
        activations = activation_bytes(config, attention, part)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the model cannot be built: {error}") from error
    parts = {"encoder": encoder, "bridge": bridge, "llm": llm}
    counts = {name: count(part) for name, part in parts.items()}
    parameters = sum(whole for whole, _ in counts.values())
    trainable = sum(trained for _, trained in counts.values())
    weights = 4.0 * (counts["encoder"][0] + counts["bridge"][0])
    weights += llm_bytes(llm, config["llm_conf"])
    rate = simulate_frame_rate(encoder)
    speech = positions(config, UTTERANCE_SECONDS, rate)
    hour = 3600 / UTTERANCE_SECONDS
    length = speech + prompt_tokens(config) + TOKENS_PER_SECOND * UTTERANCE_SECONDS
    recomputed = 2 if config["llm_conf"].get("gradient_checkpointing") else 0
    embeddings = llm.causal_lm.get_input_embeddings().weight
    tied = llm.causal_lm.get_output_embeddings().weight is embeddings
    lookup = 0 if tied else embeddings.numel()
    operations = hour * length * work(counts["llm"], 4 + recomputed, lookup)
    frames = rate * UTTERANCE_SECONDS
    operations += hour * frames * work(counts["encoder"], 2)
    operations += hour * speech * work(counts["bridge"], 4)
    in_place = config.get("optim") not in ("adam", "adamw")
    in_place |= bool((config.get("optim_conf") or {}).get("fused"))
    return Estimate(
        parameters,
        trainable,
        weights,
        4.0 * trainable,
        8.0 * trainable,
        activations,
        0.0 if in_place else 4.0 * trainable,
        operations,
    )


def prompt_tokens(config: dict) -> int:
    """Return the number of tokens around the speech, with the longest list."""
    lists = config.get("hotword_conf") or {}
    return PROMPT_TOKENS + (lists.get("max_tokens", MAX_TOKENS) if lists else 0)


def replace_shapes(config: dict, encoder: str | None, llm: str | None) -> dict:
    """Return a training configuration with other models; their weights are not needed.

    Args:
        config: a training configuration.
        encoder, llm: hub ids or folders; None: the model stays.
    """
    config = dict(config)
    if encoder:
        shape = load_shape(encoder, "audio_encoder")
        kind = ENCODER_KINDS.get(shape.model_type, "auto")
        config["encoder"] = "auto" if getattr(shape, "add_adapter", False) else kind
        conf = {**config.get("encoder_conf", {}), "model": encoder}
        conf.pop("normalize", None)  # of the input, without effect on the estimate
        config["encoder_conf"] = conf
    if llm and config.get("llm", "causal_lm"):
        config["llm_conf"] = {**config.get("llm_conf", {}), "model": llm}
    return config


def activation_bytes(config: dict, attention: str | None, part: int = 1) -> float:
    """Return the peak bytes of a batch's activations, for all of the LLM's layers.

    Args:
        config: a training configuration with encoder, bridge and LLM.
        attention: see :func:`estimate`.
        part: the batch is divided by this number.
    """
    from speechllm.training.memory_simulation import simulate_step

    llm_config = load_shape(config["llm_conf"]["model"])
    batch = max(1, round(batch_seconds(config) / part / UTTERANCE_SECONDS))
    few, more = (
        simulate_step(
            build_model(config, llm_config, layers, attention),
            batch,
            int(UTTERANCE_SECONDS * SAMPLING_RATE),
            prompt_tokens(config),
            int(UTTERANCE_SECONDS * TOKENS_PER_SECOND),
        )
        for layers in (2, 4)
    )
    return few.extrapolate(more, (llm_config.num_hidden_layers - 2) / 2).peak


def build_encoder(config: dict, shape):
    """Return the encoder without storage, frozen as in training."""
    import torch
    from transformers import AutoModel, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from speechllm.models.config import choose
    from speechllm.models.encoders import ENCODERS, RATE_SECONDS

    kind = choose("encoder", config["encoder"], ENCODERS)
    inputs = {}  # by the length in samples
    if config["encoder"] == "auto":
        for seconds in {UTTERANCE_SECONDS, *RATE_SECONDS}:
            samples = int(seconds * SAMPLING_RATE)
            inputs[samples] = input_tensors(shape, samples)

    class Encoder(kind):  # type: ignore[valid-type,misc]
        def load(self, model, random_init):
            if config["encoder"] != "whisper":
                return super().load(
                    AutoModel.from_config(shape, **NO_CODE), random_init
                )
            extractor = WhisperFeatureExtractor(feature_size=shape.num_mel_bins)
            self.hop, self.window_size = extractor.hop_length, extractor.n_fft
            return WhisperEncoder(shape), shape

        def inputs(self, wave):
            return {
                name: torch.ones(value.shape, dtype=value.dtype)
                for name, value in inputs[len(wave)].items()
            }

    options = {k: v for k, v in config["encoder_conf"].items() if k != "specaug"}
    with torch.device("meta"):
        return Encoder(**options)


def input_tensors(shape, samples: int) -> dict:
    """Return an utterance's input of an encoder, by its feature extractor's defaults.

    Args:
        shape: transformers config of the encoder.
        samples: length of the utterance, 16 kHz.

    Raises:
        ValueError: transformers has no feature extractor for this kind of model.
    """
    import numpy as np
    from transformers import SeamlessM4TFeatureExtractor
    from transformers.models.auto.feature_extraction_auto import (
        FEATURE_EXTRACTOR_MAPPING,
    )

    if shape.model_type == "wav2vec2-bert":  # transformers' default reads waveforms
        extractor = SeamlessM4TFeatureExtractor
    elif type(shape) in FEATURE_EXTRACTOR_MAPPING:
        extractor = FEATURE_EXTRACTOR_MAPPING[type(shape)]
    else:
        raise ValueError(f"no feature extractor for an encoder {shape.model_type!r}")
    bins = getattr(shape, "num_mel_bins", None)
    silence = np.zeros(samples, np.float32)
    return dict(
        extractor(**({"feature_size": bins} if bins else {}))(
            silence, sampling_rate=SAMPLING_RATE, return_tensors="pt"
        )
    )


def build_llm(
    conf: dict, config, layers: int | None = None, attention: str | None = None
):
    """Return the LLM with its adapters, without storage.

    Args:
        layers: number of transformer layers; all if None.
        attention: attention implementation; the model's default if None.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from speechllm.models.llm import LanguageModel

    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    tuning = conf.get("tuning", "lora")
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32 if stream_bytes(conf) == 4 else torch.bfloat16,
            attn_implementation=attention or conf.get("attn_implementation"),
            **NO_CODE,
        )
        if tuning == "qlora":  # products of dequantised weights are in bfloat16
            for module in linear_modules(causal_lm):
                module.to(torch.bfloat16)
        checkpointing = bool(conf.get("gradient_checkpointing"))
        return LanguageModel(
            causal_lm,
            tuning=tuning,
            lora=conf.get("lora"),
            gradient_checkpointing=checkpointing,
        )


def linear_modules(causal_lm) -> list:
    """Return the linear layers but the head, which qlora keeps in 4 bits."""
    from torch import nn

    head = causal_lm.get_output_embeddings()
    return [
        module
        for module in causal_lm.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def build_bridge(config: dict, input_size: int, output_size: int):
    """Return the bridge without storage."""
    import torch

    from speechllm.models.bridge import BRIDGES
    from speechllm.models.config import choose

    with torch.device("meta"):
        return choose("bridge", config["bridge"], BRIDGES)(
            input_size, output_size, **config.get("bridge_conf") or {}
        )


def build_model(config: dict, llm_config, layers: int, attention: str | None):
    """Return the whole model without storage, with ``layers`` LLM layers and no CTC."""
    import torch

    from speechllm.models.speech_llm import SpeechLLM
    from speechllm.training.memory_simulation import PoolingBridge

    encoder_config = load_shape(config["encoder_conf"]["model"], "audio_encoder")
    encoder = build_encoder(config, encoder_config)
    llm = build_llm(config["llm_conf"], llm_config, layers, attention)
    bridge = build_bridge(config, encoder.output_size, llm.hidden_size)
    if bridge.needs_ctc:
        speech = compressed_positions(bridge, UTTERANCE_SECONDS)
        with torch.device("meta"):
            bridge = PoolingBridge(encoder.output_size, llm.hidden_size, speech)
    precision = (config.get("model_conf") or {}).get("autocast", "bfloat16")
    if precision == "auto":  # as on a GPU
        precision = "bfloat16"
    model = SpeechLLM(encoder, None, bridge, llm, ctc_weight=0.0, autocast=precision)
    return model.train()


def count(module) -> tuple[int, int]:
    """Return the numbers of parameters and of trained parameters of a module."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def llm_bytes(llm, conf: dict) -> float:
    """Return the bytes of an LLM's weights: trained in float32, frozen in ``dtype``."""
    tuning, dtype = conf.get("tuning", "lora"), conf.get("dtype", "auto")
    frozen = 4 if tuning in ("full", "qlora") or dtype == "float32" else 2
    packed = set()
    if tuning == "qlora":
        packed = {id(module.weight) for module in linear_modules(llm.causal_lm)}
    total = 0.0
    for parameter in llm.parameters():
        size = 4 if parameter.requires_grad else frozen
        if id(parameter) in packed and not parameter.requires_grad:
            size = FOUR_BITS
        total += size * parameter.numel()
    return total


def positions(config: dict, seconds: float, rate: float) -> int:
    """Return the LLM positions of an utterance, by a bridge of few dimensions.

    Args:
        rate: frames per second of the encoder.
    """
    import torch

    from speechllm.models.bridge import BRIDGES

    bridge = BRIDGES[config["bridge"]](8, 8, **config.get("bridge_conf") or {})
    if bridge.needs_ctc:
        return compressed_positions(bridge, seconds)
    frames = int(rate * seconds)
    return bridge(torch.zeros(1, frames, 8), torch.tensor([frames]))[1].item()


def compressed_positions(bridge, seconds: float) -> int:
    """Return the LLM positions of an utterance by a bridge that reads CTC output."""
    from speechllm.models.bridge import CTCCompressionBridge

    # as many as letters, or LLM tokens
    return int(seconds * (15 if isinstance(bridge, CTCCompressionBridge) else 5))


def work(counts: tuple[int, int], frozen: int, lookup: int = 0) -> float:
    """Return the operations of one position.

    Args:
        counts: parameters, and trained parameters.
        frozen: operations for each weight; a trained one costs 2 more.
        lookup: parameters of embeddings, which are looked up.
    """
    parameters, trained = counts
    return frozen * (parameters - lookup) + 2 * trained


def stream_bytes(conf: dict) -> int:
    """Return the bytes of a number between the LLM's layers."""
    whole = conf.get("tuning") in ("full", "qlora") or conf.get("dtype") == "float32"
    return 4 if whole else 2


@dataclass(frozen=True)
class Advice:
    """Changes of a configuration that make it fit, and the new estimate."""

    change: str
    estimate: Estimate


def find_advice(config: dict, gpu: float) -> Advice | None:
    """Return the smallest change that fits into ``gpu`` bytes, or None."""
    tried = []
    changed = copy.deepcopy(config)
    for change in ({}, {"gradient_checkpointing": True}, {"tuning": "qlora"}):
        changed["llm_conf"] = {**changed["llm_conf"], **change}
        tried += [f"{name}: {str(value).lower()}" for name, value in change.items()]
        if not fits(estimate(changed, part=16), gpu):
            continue
        for part in (1, 2, 4, 8, 16):
            if fits(found := estimate(changed, part=part), gpu):
                names = list(tried)
                if part > 1:
                    names.append(f"a {part}th of the batch and {part} times accum_grad")
                return Advice("; ".join(names), found)
    return None


def fits(found: Estimate, gpu: float) -> bool:
    """Return True if a training fits into ``gpu`` bytes."""
    return found.total + RESERVE <= gpu


def report(
    config: dict,
    gpu_gib: float | None,
    teraflops: float,
    hours_of_speech: float | None = None,
) -> tuple[str, bool]:
    """Return the estimate as text, and True if it fits or no GPU is given.

    Args:
        gpu_gib: memory of the GPU in GiB, or None.
        teraflops: its speed in 10¹² operations a second.
        hours_of_speech: in the training set; for the time of the whole training.
    """
    if hours_of_speech is not None and not config.get("llm", "causal_lm"):
        amount = describe_amount(config, hours_of_speech)
        return f"{'this training':<18}{amount} (CTC only: no estimate)", True
    found = estimate(config)
    hours = 1000 * found.operations / (teraflops * 1e12) / 3600
    rows = [
        ("parameters", f"{found.parameters / 1e6:,.1f} million"),
        ("trained", f"{found.trainable / 1e6:,.1f} million"),
        ("weights", f"{found.weights / GIB:.1f} GiB"),
        ("gradients", f"{found.gradients / GIB:.1f} GiB"),
        ("optimizer", f"{found.optimizer / GIB:.1f} GiB"),
        ("activations", f"{found.activations / GIB:.1f} GiB"),
        ("update", f"{found.update / GIB:.1f} GiB, after the activations are freed"),
        ("in all", f"{found.total / GIB:.1f} GiB and {RESERVE / GIB:.1f} in reserve"),
        ("1000 h of speech", f"{hours:,.0f} h at {teraflops:g} TFLOP/s"),
    ]
    if hours_of_speech is not None:
        minutes = training_hours(config, hours_of_speech) * hours * 60 / 1000
        amount = describe_amount(config, hours_of_speech)
        rows.append(("this training", f"{amount}; {minutes:,.0f} min at that speed"))
    lines = [f"{name:<18}{value}" for name, value in rows]
    lines.append(
        f"for batches of {batch_seconds(config):.0f} s of speech in utterances of "
        f"{UTTERANCE_SECONDS:.0f} s"
    )
    if gpu_gib is None:
        return "\n".join(lines), True
    if fits(found, gpu_gib * GIB):
        return "\n".join([*lines, f"fits into {gpu_gib:g} GiB"]), True
    lines.append(f"does not fit into {gpu_gib:g} GiB")
    advice = find_advice(config, gpu_gib * GIB)
    if advice is None:
        lines.append("nor with qlora and a 16th of the batch: take a smaller LLM")
    else:
        size = advice.estimate.total / GIB
        lines.append(f"this fits, {size:.1f} GiB: {advice.change}")
    return "\n".join(lines), False
