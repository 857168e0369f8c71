"""Nue-ASR's released format: ``rinna/nue-asr``, and models of ours written like it.

The architecture is that of Hono et al. 2024 (arXiv 2312.03668): HuBERT, two strided
convolutions with GELU and a projection, GPT-NeoX, which reads ``<s>``, the speech and
``[SEP]`` and writes the transcript. The names of configuration and weights are those
of the authors' package (github.com/rinnakk/nue-asr, Apache-2.0), so that its
``transcribe`` takes a :class:`NueASRModel` too. Importing this module makes the format
known to transformers::

    import speechllm.model.nue_asr
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained("rinna/nue-asr")
    processor = AutoProcessor.from_pretrained("rinna/nue-asr")
    tokens = model(**processor(waveform))  # one utterance at a time
    text = processor.decode(tokens[0])

``SpeechToText.from_pretrained`` puts the same weights behind the batched search of
this package.
"""

from __future__ import annotations

import json
import logging
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

from speechllm.audio.io import SAMPLING_RATE
from speechllm.pretrained.model_folder import missing_parts, weight_files
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError

MODEL_TYPE = "nue_asr"
PREFIX, SUFFIX = "<s>", "[SEP]"  # around the speech
# how the authors' package decodes; the rest is greedy
GENERATION = {"min_tokens": 2, "tokens_per_second": 4.0, "extra_tokens": 20.5}
UNUSED = "audio_encoder.masked_spec_embed"  # only for masks in training

logger = logging.getLogger(__name__)


class NueASRConfig(PreTrainedConfig):
    """Configuration of a Nue-ASR model.

    Args:
        audio_encoder_config: a ``HubertConfig``, or its content.
        llm_config: a ``GPTNeoXConfig``, or its content.
        bridge_conv_kernel_size, bridge_conv_stride: of the bridge's convolutions.
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
        """As JSON, with rotary positions under their older names beside the new."""
        content = super().to_dict()
        rope = content["llm_config"].get("rope_parameters") or {}
        if "rope_theta" in rope:  # transformers before version 5 reads these
            content["llm_config"]["rotary_emb_base"] = rope["rope_theta"]
            content["llm_config"]["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
        return content


class NueASRModel(PreTrainedModel):
    """HuBERT, bridge and GPT-NeoX as one model of transformers.

    Its forward pass takes one utterance, as the authors' does; for many at once there
    is :class:`speechllm.SpeechToText`.
    """

    config_class = NueASRConfig
    main_input_name = "audio_sample"
    _supports_sdpa = True
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [  # buffers in checkpoints of GPT-NeoX's age
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
        """Embeddings (batch, tokens, hidden) of token ids (batch, tokens)."""
        return self.llm.get_input_embeddings()(token)

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Embeddings (batch, positions, hidden) of waveforms (batch, samples)."""
        hidden = self.audio_encoder(audio).last_hidden_state.transpose(1, 2)
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
            prefix_token, postfix_token: (1, tokens) around the speech.
            audio_sample: (1, samples) at 16 kHz.
            **generation: options of ``generate``; greedy, and as many tokens as the
                authors' package allows, unless they say otherwise.

        Returns:
            Token ids (1, tokens), end of text included.
        """
        if len(audio_sample) != 1:
            raise ValueError("one utterance at a time; SpeechToText takes many")
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
        )
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
        """Upload to the hub as every model of transformers does.

        A repository without a card gets :func:`model_card`. The processor has a
        ``push_to_hub`` of its own.

        Returns:
            The address of the commit.
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
    """Waveform → inputs of :class:`NueASRModel`, and its tokens → text."""

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
        """Inputs of the model for one waveform (samples,)."""
        encoded = self.feature_extractor(
            audio, sampling_rate=sampling_rate, return_tensors="pt"
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
        """The text of token ids (tokens,)."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)


AutoConfig.register(MODEL_TYPE, NueASRConfig, exist_ok=True)
AutoModel.register(NueASRConfig, NueASRModel, exist_ok=True)
AutoProcessor.register(NueASRConfig, NueASRProcessor, exist_ok=True)


def read_config(folder: Path) -> NueASRConfig:
    """Read and check ``config.json``."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    for key in NueASRConfig.sub_configs:
        if not isinstance(content.get(key), dict):
            raise UserError(f"{path}: the key {key!r} is missing or is no mapping")
    try:
        return NueASRConfig(**content)
    except Exception as error:  # transformers' checks raise classes of their own
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a valid configuration: {reason}") from error


def read_weights(folder: Path, dtype: torch.dtype) -> NueASRModel:
    """Read config and weights, and check that they fit each other."""
    if missing := missing_parts(folder):
        raise UserError(f"{folder}: no model: it lacks {' and '.join(missing)}")
    config = read_config(folder)
    options = {"weights_only": True, "output_loading_info": True}
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in NueASRModel(config).parameters())
    except Exception as error:  # whatever a layer says of a size that is none
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder / 'config.json'}: no model can be built from it: {reason}"
        ) from error
    held = sum(file.stat().st_size for file in weight_files(folder))
    if size > held:  # far larger than its files: find out why without its memory
        options["device_map"] = "meta"
    try:
        model, info = NueASRModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # said below, with names
            **options,
        )
    except Exception as error:  # of json, safetensors, pickle or torch
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: the weights cannot be read: {reason}") from error
    shapes = [
        f"{name} {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    for names, what in (
        (shapes, "are of another shape than config.json says"),
        (sorted(set(info["missing_keys"]) - {UNUSED}), "are missing"),
        (sorted(set(info["unexpected_keys"]) - {UNUSED}), "are none of this model's"),
    ):
        if names:
            raise UserError(
                f"{folder}: {len(names)} weights {what}: {', '.join(names[:3])}"
            )
    if size > held:
        raise UserError(f"{folder}: {held} bytes cannot hold {size} weights")
    return model


def speech_llm_state(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a released model by the names they have in a ``SpeechLLM``.

    Raises:
        UserError: the folder is no such model.
    """
    ours = {
        "audio_encoder.": "encoder.encoder.",
        "bridge_convs.": "bridge.convolutions.",
        "bridge_proj.": "bridge.projection.",
        "llm.": "llm.causal_lm.",
    }
    state = {}
    for name, value in read_weights(Path(folder), torch.float32).state_dict().items():
        theirs = next(prefix for prefix in ours if name.startswith(prefix))
        state[ours[theirs] + name.removeprefix(theirs)] = value
    state.pop("encoder.encoder.masked_spec_embed", None)
    return state


def load_feature_extractor(folder: Path) -> Wav2Vec2FeatureExtractor:
    """What the folder says of waveforms; the released model leaves them as they are.

    Raises:
        UserError: the file is damaged, or wants another sampling rate than 16 kHz.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).exists():
            continue
        try:
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder / name}: cannot be read: {reason}") from error
        if extractor.sampling_rate != SAMPLING_RATE:
            raise UserError(
                f"{folder / name}: sampling_rate {extractor.sampling_rate!r}; such "
                f"models hear {SAMPLING_RATE} Hz"
            )
        return extractor
    return Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=SAMPLING_RATE)


def model_card(model: NueASRModel, language: str = "", license: str = "") -> str:
    """The hub's README.md for a model of this format."""
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
            'Recognition" (arXiv 2312.03668). The LLM reads `<s>`, the speech and '
            "`[SEP]`, and writes the transcript.",
            "",
            *table,
            "",
            "Input: mono waveforms at 16 kHz. Utterances of more than 16 s are longer "
            "than such models are usually trained on: split them.",
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
