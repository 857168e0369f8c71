"""Nue-ASR's released format (``yky-h/nue-asr``) as classes of transformers.

The architecture is that of Hono et al. 2024 (arXiv 2312.03668): HuBERT, two strided
convolutions with GELU and a projection, and GPT-NeoX with the input ``<s>``, speech,
``[SEP]``, which generates the transcript. Configuration keys and weight names are
those of the authors' package (github.com/rinnakk/nue-asr, Apache-2.0), so that its
``transcribe`` accepts a :class:`NueASRModel`, too. Importing this module registers the
format with transformers::

    import speechllm.models.nue_asr
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained("yky-h/nue-asr")
    processor = AutoProcessor.from_pretrained("yky-h/nue-asr")
    tokens = model(**processor(waveform))  # one utterance at a time
    text = processor.decode(tokens[0])

``SpeechToText.from_pretrained`` loads the same weights for this package's batched
search.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    BatchFeature,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    HubertConfig,
    HubertModel,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Wav2Vec2FeatureExtractor,
)

from speechllm.audio.io import SAMPLING_RATE, check_waveform
from speechllm.pretrained.model_folder import missing_parts, weight_files
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError, reason_of

MODEL_TYPE = "nue_asr"
PREFIX, SUFFIX = "<s>", "[SEP]"  # prompt before and after the speech
# search options of the authors' package, which is greedy otherwise
GENERATION = {
    "min_tokens": 2,
    "tokens_per_second": 4.0,
    "extra_tokens": 20.5,
    "retry_truncated": False,
}
UNUSED = "audio_encoder.masked_spec_embed"  # for time masks in training only


class NueASRConfig(PreTrainedConfig):
    """Configuration of a Nue-ASR model.

    Args:
        audio_encoder_config: a ``HubertConfig`` or its content.
        llm_config: a ``GPTNeoXConfig`` or its content.
        bridge_conv_kernel_size, bridge_conv_stride: of each convolution of the bridge.
    """

    model_type = MODEL_TYPE
    sub_configs = {"audio_encoder_config": HubertConfig, "llm_config": GPTNeoXConfig}

    def __init__(
        self,
        audio_encoder_config: HubertConfig | dict | None = None,
        llm_config: GPTNeoXConfig | dict | None = None,
        bridge_conv_kernel_size: tuple[int, ...] = (4, 4),
        bridge_conv_stride: tuple[int, ...] = (2, 2),
        **options,
    ):
        for name, kind, given in (
            ("audio_encoder_config", HubertConfig, audio_encoder_config),
            ("llm_config", GPTNeoXConfig, llm_config),
        ):
            built = given if isinstance(given, kind) else kind(**(given or {}))
            setattr(self, name, built)
        self.bridge_conv_kernel_size = list(bridge_conv_kernel_size)
        self.bridge_conv_stride = list(bridge_conv_stride)
        super().__init__(**options)

    def to_dict(self) -> dict:
        """Return the content of config.json, with rotary options under both names."""
        content = super().to_dict()
        rope = content["llm_config"].get("rope_parameters") or {}
        if "rope_theta" in rope:  # names before transformers 5
            content["llm_config"]["rotary_emb_base"] = rope["rope_theta"]
            content["llm_config"]["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
        return content


class NueASRModel(PreTrainedModel):
    """HuBERT, bridge and GPT-NeoX as one transformers model.

    The forward pass takes one utterance, as the authors' does; use
    :class:`speechllm.SpeechToText` for batches.
    """

    config_class = NueASRConfig
    main_input_name = "audio_sample"
    _supports_sdpa = True
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [  # buffers in old GPT-NeoX checkpoints
        r"attention\.bias$",
        r"attention\.masked_bias$",
        r"rotary_emb\.inv_freq$",
    ]

    def __init__(self, config: NueASRConfig):
        super().__init__(config)
        self.audio_encoder = HubertModel(config.audio_encoder_config)
        self.llm = GPTNeoXForCausalLM(config.llm_config)
        size = config.audio_encoder_config.hidden_size
        self.bridge_convs = nn.ModuleList(
            nn.Conv1d(size, size, kernel, stride)
            for kernel, stride in zip(
                config.bridge_conv_kernel_size, config.bridge_conv_stride, strict=True
            )
        )
        self.bridge_proj = nn.Linear(size, config.llm_config.hidden_size)
        self.post_init()

    def encode_token(self, token: Tensor) -> Tensor:
        """Return embeddings (batch, tokens, hidden) of token ids (batch, tokens)."""
        return self.llm.get_input_embeddings()(token)

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Map waveforms (batch, samples) to embeddings (batch, positions, hidden)."""
        hidden = self.audio_encoder(audio).last_hidden_state.transpose(1, 2)
        # (batch, size, frames)
        for convolution in self.bridge_convs:
            hidden = F.gelu(convolution(hidden))
        return self.bridge_proj(hidden.transpose(1, 2))

    @torch.inference_mode()
    def forward(
        self,
        prefix_token: Tensor,
        audio_sample: Tensor,
        postfix_token: Tensor,
        **generation,
    ) -> Tensor:
        """Generate the transcript of one utterance.

        Args:
            prefix_token, postfix_token: (1, tokens) before and after the speech.
            audio_sample: (1, samples) at 16 kHz.
            **generation: options of ``generate``; the defaults are greedy search and
                the token limits of the authors' package.

        Returns:
            Token ids (1, tokens), end of text included.

        Raises:
            ValueError: more than one utterance.
        """
        if len(audio_sample) != 1:
            raise ValueError(
                f"{len(audio_sample)} utterances, not 1; SpeechToText takes batches"
            )
        seconds = audio_sample.shape[1] / SAMPLING_RATE
        limit = GENERATION["tokens_per_second"] * seconds + GENERATION["extra_tokens"]
        if generation.get("max_new_tokens") is None:
            generation["max_new_tokens"] = int(limit)
        generation.setdefault("min_new_tokens", GENERATION["min_tokens"])
        generation.setdefault("do_sample", False)
        embeddings = torch.cat(
            [
                self.encode_token(prefix_token),
                self.encode_audio(audio_sample.to(self.dtype)),
                self.encode_token(postfix_token),
            ],
            dim=1,
        )  # (1, positions, hidden)
        mask = torch.ones_like(embeddings[:, :, 0], dtype=torch.long)
        return self.llm.generate(
            inputs_embeds=embeddings, attention_mask=mask, **generation
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
    ) -> str:
        """Upload the model to the hub, like any transformers model.

        A repository without a card gets :func:`model_card`. The processor has its own
        ``push_to_hub``.

        Returns:
            The URL of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if not api.file_exists(repo_id, "README.md", revision=revision):
                Path(folder, "README.md").write_text(model_card(self), "utf-8")
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )


class NueASRProcessor(ProcessorMixin):
    """Waveforms to inputs of :class:`NueASRModel`, and its tokens to text."""

    def __init__(self, feature_extractor, tokenizer):
        super().__init__(feature_extractor, tokenizer)

    @classmethod
    def _get_arguments_from_pretrained(cls, name, processor_dict=None, **options):
        from speechllm.pretrained.resolve import resolve_model

        folder = resolve_model(name)
        return [load_feature_extractor(folder), load_tokenizer(folder)]

    def __call__(
        self, audio: np.ndarray | Tensor, sampling_rate: int = SAMPLING_RATE
    ) -> BatchFeature:
        """Return the model inputs for one waveform (samples,)."""
        encoded = self.feature_extractor(
            check_waveform(audio), sampling_rate=sampling_rate, return_tensors="pt"
        )
        prefix, suffix = (
            self.tokenizer.encode(text, add_special_tokens=False)
            for text in (PREFIX, SUFFIX)
        )
        return BatchFeature(
            {
                "prefix_token": torch.tensor([prefix]),
                "audio_sample": encoded["input_values"],
                "postfix_token": torch.tensor([suffix]),
            }
        )

    def decode(self, tokens: Tensor, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids (tokens,)."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)


AutoConfig.register(MODEL_TYPE, NueASRConfig, exist_ok=True)
AutoModel.register(NueASRConfig, NueASRModel, exist_ok=True)
AutoProcessor.register(NueASRConfig, NueASRProcessor, exist_ok=True)


def read_config(folder: Path) -> NueASRConfig:
    """Read and check ``config.json``.

    Raises:
        UserError: it cannot be read, lacks a part, or is not a valid configuration.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    for key in NueASRConfig.sub_configs:
        if not isinstance(content.get(key), dict):
            raise UserError(f"{path}: the key {key!r} is missing or not a mapping")
    try:
        return NueASRConfig(**content)
    except Exception as error:  # transformers raises many classes
        reason = reason_of(error)
        raise UserError(f"{path}: not a valid configuration: {reason}") from error


def read_weights(folder: Path, dtype: torch.dtype) -> NueASRModel:
    """Read configuration and weights, and check that they match.

    Raises:
        UserError: a file is missing or damaged, or weights are missing, unknown or of
            another shape.
    """
    if missing := missing_parts(folder):
        raise UserError(f"{folder}: no model: it lacks {' and '.join(missing)}")
    config = read_config(folder)
    options = {"weights_only": True, "output_loading_info": True}
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in NueASRModel(config).parameters())
    except Exception as error:  # layers raise various classes for bad sizes
        reason = reason_of(error)[:300]
        raise UserError(
            f"{folder / 'config.json'}: no model can be built from it: {reason}"
        ) from error
    held = sum(file.stat().st_size for file in weight_files(folder))
    if size > held:  # more weights than bytes: find the mismatch without their memory
        options["device_map"] = "meta"
    model: NueASRModel
    info: dict
    try:
        model, info = NueASRModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # reported below, with names
            **options,
        )
    except Exception as error:  # from json, safetensors, pickle or torch
        reason = reason_of(error)[:300]
        raise UserError(f"{folder}: the weights cannot be read: {reason}") from error
    shapes = [
        f"{name} {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    for names, what in (
        (shapes, "are of another shape than config.json says"),
        (sorted(set(info["missing_keys"]) - {UNUSED}), "are missing"),
        (sorted(set(info["unexpected_keys"]) - {UNUSED}), "are not part of this model"),
    ):
        if names:
            raise UserError(
                f"{folder}: {len(names)} weights {what}: {', '.join(names[:3])}"
            )
    if size > held:
        raise UserError(f"{folder}: {held} bytes cannot hold {size} weights")
    return model


def load_part(
    folder: Path,
    part: str,
    dtype: torch.dtype,
    random_init: bool = False,
    attention: str | None = None,
) -> PreTrainedModel:
    """Load the encoder or the LLM of a released model.

    Args:
        folder: of the model.
        part: ``audio_encoder`` or ``llm``.
        dtype: of the weights.
        random_init: build it from its configuration, without its weights.
        attention: attention implementation of transformers, or None for its choice.

    Raises:
        UserError: the folder is not such a model.
    """
    model: PreTrainedModel
    if random_init:
        kind = {"audio_encoder": HubertModel, "llm": GPTNeoXForCausalLM}[part]
        model = kind(getattr(read_config(folder), f"{part}_config")).to(dtype)
    else:
        model = getattr(read_weights(folder, dtype), part)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def speech_llm_state(folder: str | Path) -> dict[str, Tensor]:
    """Return the weights of a released model under their names in a ``SpeechLLM``.

    Raises:
        UserError: the folder is not such a model.
    """
    prefixes = {
        "audio_encoder.": "encoder.encoder.",
        "bridge_convs.": "bridge.convolutions.",
        "bridge_proj.": "bridge.projection.",
        "llm.": "llm.causal_lm.",
    }
    state = {}
    for name, value in read_weights(Path(folder), torch.float32).state_dict().items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        state[prefixes[prefix] + name.removeprefix(prefix)] = value
    state.pop("encoder.encoder.masked_spec_embed", None)
    return state


def load_feature_extractor(folder: Path) -> Wav2Vec2FeatureExtractor:
    """Return the feature extractor of a folder.

    Without a configuration file it does not normalise, as for the released model.

    Raises:
        UserError: the file is damaged, or its sampling rate is not 16 kHz.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).exists():
            continue
        try:
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            reason = reason_of(error)
            raise UserError(f"{folder / name}: cannot be read: {reason}") from error
        if extractor.sampling_rate != SAMPLING_RATE:
            raise UserError(
                f"{folder / name}: sampling_rate {extractor.sampling_rate!r}, but the "
                f"input is {SAMPLING_RATE} Hz; use a model for {SAMPLING_RATE} Hz"
            )
        return extractor
    return Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=SAMPLING_RATE)


def model_card(model: NueASRModel, language: str = "", license: str = "") -> str:
    """Return the README.md of a model in this format, with hub metadata.

    Args:
        language: language code for the metadata, or empty.
        license: licence of the weights as the hub names it, or empty.
    """
    config = model.config
    millions = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in (
            ("HuBERT encoder", model.audio_encoder),
            ("Bridge", nn.ModuleList([model.bridge_convs, model.bridge_proj])),
            ("GPT-NeoX", model.llm),
        )
    }
    head = ["---", *([f"language: {language}"] if language else [])]
    head += ["library_name: transformers"]
    head += [f"license: {license}"] if license else []
    head += ["pipeline_tag: automatic-speech-recognition"]
    head += [f"tags: [{MODEL_TYPE}]", "---"]
    table = ["| part | million parameters |", "| --- | ---: |"]
    table += [f"| {name} | {count:.2f} |" for name, count in millions.items()]
    return "\n".join(
        [
            *head,
            "# Speech recognition in the format of Nue-ASR",
            "",
            "HuBERT, strided convolutions "
            f"(kernels {config.bridge_conv_kernel_size}, strides "
            f"{config.bridge_conv_stride}) and GPT-NeoX, as in Hono et al. 2024, "
            '"Integrating Pre-Trained Speech and Language Models for End-to-End Speech '
            'Recognition" (arXiv 2312.03668). The input of the LLM is `<s>`, the '
            "speech and `[SEP]`, its output the transcript.",
            "",
            *table,
            "",
            "Input: mono waveforms at 16 kHz. Split utterances of more than 16 s: they "
            "are longer than the usual training data of such models.",
            "",
            "```python",
            "from speechllm import SpeechToText",
            "",
            'model = SpeechToText.from_pretrained("this folder or hub id")',
            'for result in model.transcribe(["a.wav", "b.flac"]):',
            "    print(result.text)",
            "```",
            "",
        ]
    )
