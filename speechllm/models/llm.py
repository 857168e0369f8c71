"""Decoder-only LLM: loading, tuning (full, frozen, LoRA, QLoRA) and target losses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.models.adaptation import (
    add_lora,
    checkpoint_layers,
    linear_layers,
    recomputed,
    transformer_layers,
)
from speechllm.models.encoder import length_mask
from speechllm.models.precision import resolve_dtype
from speechllm.models.quantization import check_cpu_layers, quantization_obstacle
from speechllm.pretrained.model_folder import (
    NO_CODE,
    is_nue_asr,
    load_pretrained,
    read_model_config,
)
from speechllm.pretrained.resolve import resolve_model
from speechllm.utils.errors import UserError

#: Logits in memory at a time: 256 MiB in float32.
LOGITS = 1 << 26
#: Values of transformers' ``layer_types`` that beam search's KV cache supports.
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class LanguageModel(nn.Module):
    """Causal LM of transformers with full, frozen, LoRA or QLoRA tuning.

    The head is separate from the body, so that logits are computed only where a loss
    or a search needs them.

    Args:
        model: hub id or folder (of Nue-ASR: its GPT-NeoX), or a transformers model.
        tuning: ``"full"``, ``"frozen"``, ``"lora"``, or ``"qlora"``: LoRA on 4-bit
            weights, as in Dettmers et al. 2023 ("QLoRA: Efficient Finetuning of
            Quantized LLMs", section 3): NF4 with double quantisation and products in
            bfloat16 (requirements: :func:`quantization_obstacle`).
        lora: options of ``peft.LoraConfig`` (``r``, ``lora_alpha``, ``lora_dropout``,
            ``target_modules``; all linear layers by default).
        dtype: precision of the frozen weights: ``"float32"``, ``"bfloat16"``, or
            ``"auto"``: bfloat16 if it is the faster one. They keep it when a
            trainer casts the whole model. ``"4bit"``, for ``decoding``: those of
            ``qlora``, and the rest in the precision of :func:`resolve_dtype`.
        random_init: build the architecture from its config, without its weights.
        gradient_checkpointing: recompute activations in the backward pass, also in a
            frozen LLM, through which the bridge is trained.
        tokenizer: the tokenizer, if ``model`` is a transformers model.
        decoding: the weights are in ``dtype`` with any tuning, also those of ``full``
            and ``qlora``, whose 4-bit weights are converted: adapters can be merged,
            and no 4-bit kernel is needed.
        attn_implementation: transformers' attention: ``"eager"``, ``"sdpa"``,
            ``"flash_attention_2"``, …; None: :func:`attention_implementation`.

    Of a multimodal model (Gemma 3 from 4B) only the language model is used, and only
    that is tuned.

    Raises:
        ValueError: an unknown tuning or attention, weights that cannot be quantised,
            or an LLM that is not supported.
    """

    step_graphs = False  # decoding steps are CUDA graphs; an inference backend sets it

    def __init__(
        self,
        model: str | nn.Module,
        tuning: str = "lora",
        lora: dict | None = None,
        dtype: str = "auto",
        random_init: bool = False,
        gradient_checkpointing: bool = False,
        tokenizer=None,
        decoding: bool = False,
        attn_implementation: str | None = None,
    ):
        super().__init__()
        if tuning not in ("full", "frozen", "lora", "qlora"):
            raise ValueError(f"llm tuning {tuning!r}: full, frozen, lora or qlora")
        if isinstance(model, nn.Module):
            self.tokenizer, self.dtype, causal_lm = tokenizer, model.dtype, model
        elif tuning == "qlora" or dtype == "4bit":
            if random_init:
                raise ValueError("llm tuning qlora is for pretrained weights")
            rest = resolve_dtype(dtype) if decoding else torch.float32
            self.tokenizer, causal_lm = load_quantized_llm(
                model, attn_implementation, rest
            )
            if decoding and dtype != "4bit":
                causal_lm = causal_lm.dequantize().to(rest)
            self.dtype = causal_lm.get_input_embeddings().weight.dtype
        else:
            is_master = tuning == "full" and not decoding
            self.dtype = torch.float32 if is_master else resolve_dtype(dtype)
            self.tokenizer, causal_lm = load_llm(
                model, self.dtype, random_init, attn_implementation
            )
        check_supported(causal_lm)
        causal_lm.config.use_cache = False
        text_model = language_model(causal_lm)
        if tuning == "full":  # a vision tower gets no gradient
            head = causal_lm.get_output_embeddings()
            causal_lm.requires_grad_(False)
            text_model.requires_grad_(True)
            head.requires_grad_(True)
        else:
            causal_lm.requires_grad_(False)
        if tuning in ("lora", "qlora"):
            is_multimodal = text_model is not causal_lm.base_model
            adapted = text_model if is_multimodal else causal_lm
            head = causal_lm.get_output_embeddings()
            add_lora(adapted, lora, linear_layers(adapted, without=[head]))
        if gradient_checkpointing:
            checkpoint_layers(transformer_layers(text_model))
        self.tuning = tuning
        self._lengths: dict[int, int] = {}  # token to characters
        self.causal_lm = causal_lm

    @property
    def config(self):
        """The transformers config of the language model."""
        return self.causal_lm.config.get_text_config(decoder=True)

    @property
    def hidden_size(self) -> int:
        """Dimension of an input embedding."""
        return self.causal_lm.get_input_embeddings().embedding_dim

    @property
    def eos_id(self) -> int:
        """The end-of-text token."""
        return self.tokenizer.eos_token_id

    def token_length(self, token: int) -> int:
        """Return the length of a token's text in characters, leading space included."""
        if token not in self._lengths:
            self._lengths[token] = len(self.tokenizer.decode([token]))
        return self._lengths[token]

    def _apply(self, fn, recurse: bool = True) -> LanguageModel:
        """Move the weights without casting them; ESPnet's trainer casts all models."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def train(self, mode: bool = True) -> LanguageModel:
        """Set the mode; a frozen LLM stays in evaluation mode."""
        return super().train(mode and self.tuning != "frozen")

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings (…, hidden) of token ids (…)."""
        return self.causal_lm.get_input_embeddings()(tokens)

    def embed_lists(self, lists: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the input embeddings (tokens, hidden) of each list of ids.

        All lists share one lookup, since the gradient of every lookup is as large as
        the whole table.
        """
        device = self.causal_lm.get_input_embeddings().weight.device
        tokens = torch.tensor([t for ids in lists for t in ids], device=device)
        return list(self.embed(tokens.long()).split([len(ids) for ids in lists]))

    def save(self, folder: Path) -> None:
        """Write the LLM and its tokenizer as a folder of transformers."""
        self.causal_lm.config.use_cache = True  # off in training
        self.causal_lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def body(self, embeddings: Tensor, mask: Tensor, cache=None, positions=None):
        """Run all layers but the head.

        Args:
            embeddings: (batch, new positions, hidden)
            mask: (batch, cached and new positions), 0 for padding.
            cache: a transformers cache, or None.
            positions: (batch, new positions); counted from the mask if None.

        Returns:
            hidden states (batch, new positions, hidden)
        """
        if positions is None:
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            positions = positions[:, -embeddings.shape[1] :]
        output = language_model(self.causal_lm)(
            inputs_embeds=embeddings.to(self.dtype),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Return the float32 logits (…, vocabulary) of hidden states (…, hidden)."""
        logits = self.causal_lm.get_output_embeddings()(hidden).float()
        config = self.config
        if config.model_type == "hyperclovax":
            logits = logits * config.logits_scaling
        elif getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "final_logit_softcapping", None):  # Gemma 2
            cap = config.final_logit_softcapping
            logits = torch.tanh(logits / cap) * cap
        return logits

    def answer_loss(
        self,
        prompts: Sequence[Tensor],
        answers: Sequence[Sequence[int]],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Compute the next-token cross-entropy at the target positions only.

        The loss is summed over a target and averaged over the batch, as ESPnet's
        attention loss.

        Args:
            prompts: embeddings (positions, hidden) that precede each target.
            answers: target token ids of each utterance, end of text included.

        Returns:
            The loss (a scalar), and the best token at each position of all targets,
            concatenated: (target tokens,).
        """
        hidden, targets = self.answer_states(prompts, answers)

        def loss_and_best(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.head(hidden)  # (tokens, vocabulary)
            loss = F.cross_entropy(
                logits, targets, reduction="sum", label_smoothing=label_smoothing
            )
            return loss, logits.detach().argmax(1)

        chunks = self.chunks(hidden, targets)
        if len(chunks) > 1:  # the logits of one chunk are in memory at a time
            pairs = [recomputed(loss_and_best, *chunk) for chunk in chunks]
        else:
            pairs = [loss_and_best(hidden, targets)]
        losses, best = zip(*pairs)
        return torch.stack(losses).sum() / len(prompts), torch.cat(best)

    def answer_log_probs(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Return the log probability of each output token given its predecessors.

        Args:
            prompts: embeddings (positions, hidden) that precede each target.
            answers: output token ids of each utterance, end of text included.

        Returns:
            (tokens,) for each output.
        """
        log_probs = torch.cat(
            [
                self.head(hidden).log_softmax(1).gather(1, targets[:, None])[:, 0]
                for hidden, targets in self.chunks(
                    *self.answer_states(prompts, answers)
                )
            ]
        )
        return list(log_probs.split([len(answer) for answer in answers]))

    def chunks(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split target positions so that a chunk has at most ``LOGITS`` logits.

        Args:
            hidden: (target tokens, hidden)
            targets: (target tokens,)
        """
        vocabulary = self.causal_lm.get_output_embeddings().weight.shape[0]
        size = max(1, LOGITS // max(1, vocabulary))
        return list(zip(hidden.split(size), targets.split(size)))

    def answer_states(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Compute the hidden states that predict the targets, concatenated.

        Returns:
            hidden states (target tokens, hidden) and target tokens (target tokens,).
        """
        sequences = [
            torch.cat([prompt, answer])  # (positions, hidden)
            for prompt, answer in zip(
                prompts, self.embed_lists([a[:-1] for a in answers]), strict=True
            )
        ]
        lengths = torch.tensor([len(s) for s in sequences], device=prompts[0].device)
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        # (batch, positions, hidden)
        rows, places = [], []
        for row, (prompt, answer) in enumerate(zip(prompts, answers)):
            rows += [row] * len(answer)
            places += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
        targets = torch.tensor([t for a in answers for t in a], device=padded.device)
        mask = length_mask(lengths, padded.shape[1]).long()
        hidden = self.body(padded, mask)
        return hidden[rows, places], targets


@functools.lru_cache(maxsize=1)
def load_llm_tokenizer(model: str):
    """Return the tokenizer of a hub id or folder.

    Cached: a training needs it for the LLM and for the preprocessor of each data set.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or it has no token for
            the end of a text.
    """
    from speechllm.text.t5_tokenizer import load_tokenizer

    folder = resolve_model(model)
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{folder}/tokenizer_config.json: missing or without eos_token, the token "
            "that ends a text; get the file again"
        )
    return tokenizer


def language_model(causal_lm: nn.Module) -> nn.Module:
    """Return the layers of a causal LM without its head and without other modalities.

    ``get_decoder`` of transformers finds them within a multimodal model.
    """
    if causal_lm.config.get_text_config(decoder=True) is causal_lm.config:
        return causal_lm.base_model
    return causal_lm.get_decoder()


def check_supported(causal_lm: nn.Module) -> None:
    """Refuse LLMs that decoding cannot run.

    The KV cache of beam search has keys and values only, whose rows can be padded,
    copied and dropped; the state of recurrent layers cannot. The input are embeddings;
    Gemma 3n needs the token ids, too.

    Raises:
        ValueError: the model is not supported; names its architecture.
    """
    config = causal_lm.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or [])
    others = sorted(kinds - ATTENTION_LAYERS)
    if others or getattr(language_model(causal_lm), "_is_stateful", False):
        raise ValueError(
            f"llm {config.model_type}: layers other than full and sliding attention "
            f"({', '.join(others) or 'recurrent'}) are not supported; choose an LLM "
            "with these only"
        )
    if getattr(config, "hidden_size_per_layer_input", None):
        raise ValueError(
            f"llm {config.model_type}: embeddings per layer need token ids in place of "
            "speech and are not supported; choose another LLM"
        )


def causal_lm_class(config):
    """Return the transformers class that loads a config: a causal or multimodal LM."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def load_llm(
    model: str,
    dtype: torch.dtype,
    random_init: bool,
    attn_implementation: str | None = None,
):
    """Return the tokenizer and the causal LM of a hub id or folder."""
    path = resolve_model(model)
    attention = attention_implementation(attn_implementation)
    options = {"dtype": dtype, "attn_implementation": attention}
    if is_nue_asr(path):
        from speechllm.models.nue_asr import load_part

        causal_lm = load_part(path, "llm", dtype, random_init, attention)
        return load_llm_tokenizer(model), causal_lm
    config = read_model_config(path)
    if random_init:
        causal_lm = causal_lm_class(config).from_config(config, **options, **NO_CODE)
    else:
        causal_lm = load_pretrained(causal_lm_class(config), path, **options)
    return load_llm_tokenizer(model), causal_lm


def attention_implementation(name: str | None = None) -> str | None:
    """Return the attention implementation that this machine can run.

    By default it is eager on a CPU, where the fused kernel is slower at the length of
    a sentence, and else None: transformers chooses, since Gemma 2 caps its attention
    scores, which the fused kernel cannot.

    Args:
        name: ``attn_implementation`` of the configuration, or None. FlashAttention
            needs a GPU; on a CPU a model that was trained with it has the default.
    """
    has_gpu = torch.cuda.is_available()
    if name is None or (not has_gpu and name.startswith("flash")):
        return None if has_gpu else "eager"
    return name


def avoid_cudnn_attention() -> None:
    """Exclude cuDNN from scaled dot-product attention in this process.

    It compiles a plan for each new shape, and batches of speech have many: a training
    step of HuBERT base with a new shape takes twice as long on an H200, and on a B200 a
    second more (FunASR's issue 3704). Of the kernels without plans, flash takes 1.1
    times as long as cuDNN on an H200, memory-efficient attention 1.8 times.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_quantized_llm(
    model: str,
    attn_implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
):
    """Return the tokenizer and the 4-bit causal LM of a hub id or folder.

    transformers quantises each tensor as it is read, from bfloat16, so that the whole
    weights are never in memory.

    Args:
        dtype: of norms, embeddings and the head: float32, as peft prepares them for
            training; else they stay in bfloat16.

    Raises:
        ValueError: this machine or this model cannot be quantised.
    """
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    if obstacle := quantization_obstacle():
        raise ValueError(obstacle)
    path = resolve_model(model)
    if is_nue_asr(path):
        raise ValueError(f"llm tuning qlora cannot read {model}; set tuning to lora")
    causal_lm = load_pretrained(
        causal_lm_class(read_model_config(path)),
        path,
        dtype=torch.bfloat16,
        attn_implementation=attention_implementation(attn_implementation),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    check_cpu_layers(causal_lm)
    if dtype == torch.float32:
        causal_lm = prepare_model_for_kbit_training(
            causal_lm, use_gradient_checkpointing=False
        )
    return load_llm_tokenizer(model), causal_lm
