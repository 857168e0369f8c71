"""Find, check and load the model of a folder or hub id."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechllm.inference.backends import choose_engine
from speechllm.models.bridge import ConvolutionBridge
from speechllm.models.config import (
    REVISIONS,
    TOKENS_SHA256,
    pin_models,
    pretrained_names,
    read_config,
)
from speechllm.models.hubert_encoder import HubertEncoder
from speechllm.models.llm import LanguageModel
from speechllm.models.nue_asr import (
    GENERATION,
    PREFIX,
    SUFFIX,
    NueASRModel,
    load_feature_extractor,
    read_weights,
)
from speechllm.models.precision import resolve_dtype
from speechllm.models.quantization import quantization_obstacle, quantize_layers
from speechllm.models.speech_decoder import FOLDER as FIRST_PASS
from speechllm.models.speech_decoder import SpeechDecoder, has_speech_decoder
from speechllm.models.speech_llm import SpeechLLM, build_speech_llm
from speechllm.pretrained.checkpoint import load_tensors
from speechllm.pretrained.hub import snapshot_commit
from speechllm.pretrained.identity import model_identity
from speechllm.pretrained.model_folder import (
    check_files,
    has_fingerprint,
    is_nue_asr,
    missing_parts,
)
from speechllm.text.ctc_labels import read_token_list
from speechllm.text.prompts import Prompts, read_prompts
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError, is_out_of_memory, reason_of
from speechllm.utils.io import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def choose_device(device: str) -> str:
    """Return the device to use; ``auto`` is a GPU if there is one, else the CPU.

    Raises:
        UserError: the device is not available.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = str(device).partition(":")[0]
    if kind == "mps" and not torch.backends.mps.is_available():
        reason = "there is no Apple GPU here, or PyTorch was built without it"
    else:
        try:
            torch.empty(0, device=device)
            return device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
    raise UserError(f"device {device!r} cannot be used: {reason}; use auto or cpu")


def find_model(path: str | Path, revision: str | None = None) -> Path:
    """Return the model folder of a path or hub id.

    It holds ``config.yaml`` (ours), or ``config.json`` (Nue-ASR's released format).

    Args:
        path: a model folder, the folder of a training that holds one as ``model``,
            or a hub id.
        revision: commit of a hub id; the newest that is known here if None.

    Raises:
        UserError: there is no such folder or hub id, or no model in it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"{path!r} is not a model: name a folder or a hub id")
    for folder in (Path(path), Path(path) / "model"):
        if is_model(folder):
            return folder
    for folder in (Path(path), Path(path) / "model"):
        if folder.is_dir():
            check_files(folder)
    if Path(path).exists():
        raise UserError(
            f"{path}: no model (config.yaml and model.safetensors, or a config.json "
            "with model_type nue_asr); run stage 10"
        )
    from speechllm.pretrained.hub import cached_snapshot, download_all

    name = str(path)
    folder = cached_snapshot(name, revision) or download_all(name, revision)
    if not is_model(folder):
        raise UserError(f"{path}: on the hub, but not a model of this kind")
    return folder


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model that can be loaded."""
    names = ("config.yaml", "model.safetensors")
    if all((folder / name).is_file() for name in names):
        return True
    return is_nue_asr(folder)


def load_model(
    folder: Path, dtype: str, strict: bool = False
) -> tuple[SpeechLLM, Prompts, dict[str, Any]]:
    """Load a model in either format.

    Args:
        folder: of :func:`find_model`.
        dtype: of the weights. ``4bit``: those of the LLM's linear layers but the head
            are in 4 bits (:class:`~speechllm.models.llm.LanguageModel`), with their
            adapters as separate layers; all else in that of
            :func:`~speechllm.models.precision.resolve_dtype`.
        strict: as for :func:`verify_pretrained`.

    Returns:
        The model on the CPU (4-bit weights on the GPU, if there is one), its prompts,
        and its defaults of the search.

    Raises:
        UserError: a damaged folder, or other pretrained models than it was trained
            on (:func:`verify_pretrained`), or no 4-bit weights on this machine.
    """
    check_files(folder)
    if dtype == "4bit" and (obstacle := quantization_obstacle("dtype 4bit")):
        raise UserError(obstacle)
    if (folder / "config.yaml").exists():
        return load_exported(folder, dtype, strict)
    return load_nue_asr(folder, dtype)


def load_exported(
    folder: Path, dtype: str, strict: bool = False
) -> tuple[SpeechLLM, Prompts, dict[str, Any]]:
    """Load a model that stage 10 wrote; adapters of whole weights are merged.

    Its search defaults are in ``config.yaml`` under ``generation``; ``ctc_trained:
    false`` there marks a CTC branch that must not be used. Older folders have neither.

    Raises:
        UserError: as :func:`load_model`.
    """
    config = read_config(folder / "config.yaml")
    verify_pretrained(folder, config, strict)
    config = pin_models(config, config.pop(REVISIONS, None) or {})
    quantized_later = dtype == "4bit" and has_own_weights(config)
    if config.get("llm"):
        own = {"dtype": "bfloat16" if quantized_later else dtype, "decoding": True}
        config["llm_conf"] = {**config["llm_conf"], **own}
    elif dtype == "4bit":
        raise UserError(f"{folder}: dtype 4bit is for LLMs, and this model has none")
    # options of training
    config["encoder_conf"] = {**config["encoder_conf"], "specaug": None}
    config["ctc_conf"] = {}
    tokens = folder / "tokens.txt"
    token_list = read_token_list(tokens) if tokens.exists() else None
    if token_list is None and (config.get("model_conf") or {}).get("ctc_weight", 0.3):
        raise UserError(f"{tokens}: missing; export the model again")
    expected = config.pop(TOKENS_SHA256, None)
    if expected is not None and (token_list is None or file_sha256(tokens) != expected):
        raise UserError(
            f"{tokens}: not the CTC labels that the model was trained with; export the "
            "model again (stage 10)"
        )
    try:
        model = build_speech_llm({**config, "token_list": token_list})
        model.load_state_dict(load_tensors(folder))
        merge_adapters(model, resolve_dtype(dtype))
        if quantized_later:
            quantize_layers(model.llm.causal_lm)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = reason_of(error)
        raise UserError(f"{folder}: the model cannot be built: {reason}") from error
    model.to(dtype=resolve_dtype(dtype))
    model.ctc_trained &= config.get("ctc_trained") is not False
    generation = dict(config.get("generation") or {})
    prompts = read_prompts(folder / "prompts.yaml")
    prompts = replace(prompts, max_hotword_tokens=config.get("max_hotword_tokens", 0))
    return model, prompts, generation


def has_own_weights(config: dict) -> bool:
    """Return whether the LLM's weights are not those of a folder of transformers.

    They are in the model folder if they were trained, or in one of Nue-ASR.
    """
    from speechllm.pretrained.resolve import resolve_model

    if not config.get("llm"):
        return False
    conf = config["llm_conf"]
    if conf.get("tuning") == "full" or conf.get("random_init"):
        return True
    return is_nue_asr(resolve_model(conf["model"]))


def speech_decoder_loader(
    folder: Path, device: str, dtype: str, engine: str
) -> Callable[[], SpeechDecoder] | None:
    """Return a function that loads the model of the first pass.

    It is the fine-tuned one of the folder, else the pretrained model of the encoder;
    None if that has no decoder of its own, as HuBERT.

    Raises:
        UserError: a file of the fine-tuned one is missing or damaged.
    """
    from speechllm.pretrained.resolve import resolve_model

    if not (folder / "config.yaml").exists():  # Nue-ASR's released format
        return None
    source = folder / FIRST_PASS
    finetuned = source.is_dir()
    if finetuned:
        check_files(source)
        if missing := missing_parts(source):
            raise UserError(f"{source}: lacks {', '.join(missing)}")
    elif source.is_symlink() or source.exists():
        raise UserError(f"{source}: not a folder; export the model again")
    else:
        config = read_config(folder / "config.yaml")
        config = pin_models(config, config.get(REVISIONS) or {})
        source = resolve_model(config["encoder_conf"]["model"])
        if not has_speech_decoder(source):
            return None

    def load() -> SpeechDecoder:
        decoder = SpeechDecoder(source, resolve_dtype(dtype), finetuned).to(device)
        choose_engine(decoder.model, engine)
        return decoder

    return load


def verify_pretrained(folder: Path, config: dict, strict: bool = False) -> None:
    """Compare the pretrained models with those that the model was trained on.

    Models of the hub commit that is recorded are equal. Others are compared by their
    identity (key ``stands_on`` of the config; of release 0.2 by a checksum of the
    files). A difference of the weights is a warning, since models of the same name may
    be quantised.

    Args:
        strict: refuse other weights.

    Raises:
        UserError: the vocabulary of the LLM differs, whose tokens would be other texts,
            or with ``strict`` the weights.
    """
    from speechllm.pretrained.resolve import resolve_model

    llm = (config.get("llm_conf") or {}).get("model") if config.get("llm") else None
    recorded = config.get("stands_on") or {}
    revisions = config.get(REVISIONS) or {}
    for name in pretrained_names(config):
        expected, commit = recorded.get(name), revisions.get(name)
        if expected is None:
            continue
        own = resolve_model(name, revision=commit)
        if commit and snapshot_commit(own) == commit:
            continue
        before = after = None
        if isinstance(expected, dict):
            found = model_identity(own, name == llm)
            if name == llm and expected.get("vocabulary") != found["vocabulary"]:
                raise UserError(
                    f"{folder}: trained on {name} with another vocabulary than that of "
                    f"{own}, whose tokens are other texts; put the same tokenizer there"
                )
            if expected.get("weights") == found["weights"]:
                continue
            before, after = expected.get("precision"), found.get("precision")
        elif has_fingerprint(own, str(expected), name == llm):
            continue
        message = (
            f"{folder}: trained on {name} ({before or 'unconverted'} weights), but "
            f"{own} has other weights ({after or 'unconverted'})"
        )
        if isinstance(expected, dict):
            reason = "adapters fit the weights that they were trained on"
        else:
            reason = "or another config.json, which release 0.2 compared too"
        message += f"; {reason}"
        if strict:
            raise UserError(f"{message}; put the same weights there")
        logger.warning(
            "%s: texts and scores will differ from those of its table; evaluate it "
            "again, or put the same weights there (--strict refuses others)",
            message,
        )


def merge_adapters(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Add the products of LoRA to the weights they adapt, and keep plain layers.

    Adapters of 4-bit weights stay layers of their own, in ``dtype``: the sum would be
    rounded to 4 bits again.
    """
    modules = dict(model.named_modules())
    if not any(".lora_A" in name for name in modules):
        return  # do not load peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in modules.items():
        if isinstance(module, BaseTunerLayer):
            if not module.get_base_layer().weight.is_floating_point():
                for part in module.adapter_layer_names:
                    getattr(module, part).to(dtype)
                continue
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, module.get_base_layer())


def load_nue_asr(
    folder: str | Path, dtype: str = "float32"
) -> tuple[SpeechLLM, Prompts, dict[str, Any]]:
    """Load a folder in Nue-ASR's released format.

    Args:
        folder: ``config.json``, weights (safetensors or torch files, whole or in
            shards) and the tokenizer's files. Without ``prompts.yaml`` and
            ``preprocessor_config.json``, the task is Japanese recognition and
            waveforms are not normalised, as in the authors' code.
        dtype: of the weights; ``4bit`` as for :func:`load_model`, the rest in bfloat16.

    Returns:
        The model, its prompts, and the search defaults of the released code.

    Raises:
        UserError: the folder is not such a model; the message says what is wrong.
    """
    folder = Path(folder)
    whole = torch.bfloat16 if dtype == "4bit" else resolve_dtype(dtype)
    nue = read_weights(folder, whole)
    tokenizer = load_tokenizer(folder)
    for token in (PREFIX, SUFFIX):
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
            raise UserError(f"{folder}: {token} is not one token of its tokenizer")
    if len(tokenizer) > nue.config.llm_config.vocab_size:
        raise UserError(
            f"{folder}: {len(tokenizer)} tokens in the tokenizer, but the LLM has "
            f"{nue.config.llm_config.vocab_size}"
        )
    prompts = model_prompts(folder)
    normalize = load_feature_extractor(folder).do_normalize
    if dtype == "4bit":
        try:
            quantize_layers(nue.llm)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from error
    model = speech_llm_of_nue_asr(nue, tokenizer, normalize)
    return model, prompts, dict(GENERATION)


def model_prompts(folder: Path) -> Prompts:
    """Return the prompts of a model folder, without loading the model.

    Raises:
        UserError: ``prompts.yaml`` is damaged, or missing in an exported model.
    """
    path = folder / "prompts.yaml"
    if path.exists() or (folder / "config.yaml").exists():
        return read_prompts(path)
    return released_prompts(str(folder))


def released_prompts(origin: str) -> Prompts:
    """Return the prompt of the released model, for Japanese recognition."""
    return Prompts(
        tasks={"asr": PREFIX + "{speech}" + SUFFIX},
        languages={"ja": "Japanese"},
        origin=origin,
    )


def speech_llm_of_nue_asr(
    nue: NueASRModel, tokenizer: PreTrainedTokenizerBase, normalize: bool = False
) -> SpeechLLM:
    """Assemble a :class:`SpeechLLM` from the parts of a model, which are shared.

    Args:
        normalize: normalise waveforms to zero mean and unit variance.
    """
    encoder = HubertEncoder(nue.audio_encoder, normalize=normalize)
    bridge = ConvolutionBridge(
        encoder.output_size,
        nue.config.llm_config.hidden_size,
        nue.config.bridge_conv_kernel_size,
        nue.config.bridge_conv_stride,
    )
    bridge.convolutions, bridge.projection = nue.bridge_convs, nue.bridge_proj
    llm = LanguageModel(nue.llm, tuning="frozen", tokenizer=tokenizer)
    return SpeechLLM(encoder, None, bridge, llm, ctc_weight=0.0)
