"""Decoder-only LLM: loading, tuning (full, frozen, LoRA, QLoRA) and target losses."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.models.encoder import length_mask


class LanguageModel(nn.Module):
    """Causal LM of transformers with full, frozen, LoRA or QLoRA tuning.

    The head is separate from the body, so that logits are computed only where a loss
    or a search needs them.

    Args:
        model: hub id or folder, or a transformers model.
        tuning: ``"full"``, ``"frozen"``, ``"lora"``, or ``"qlora"``: LoRA on 4-bit
            weights, as in Dettmers et al. 2023 ("QLoRA: Efficient Finetuning of
            Quantized LLMs", section 3): NF4 with double quantisation and products in
            bfloat16 (requirements: :func:`quantization_obstacle`).
        lora: options of ``peft.LoraConfig`` (``r``, ``lora_alpha``, ``lora_dropout``,
            ``target_modules``; all linear layers by default).
        dtype: precision of the frozen weights: ``"float32"``, ``"bfloat16"``, or
            ``"auto"``: bfloat16 if the hardware multiplies it. They keep it when a
            trainer casts the whole model.
        random_init: build the architecture from its config, without its weights.
        gradient_checkpointing: recompute activations in the backward pass.
        tokenizer: the tokenizer, if ``model`` is a transformers model.
        dequantize: for ``qlora``: convert the 4-bit weights to ``dtype``, for
            decoding: adapters can be merged, and no 4-bit kernel is needed.

    Raises:
        ValueError: an unknown tuning, or weights that cannot be quantised.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tuning: str = "lora",
        lora: dict | None = None,
        dtype: str = "auto",
        random_init: bool = False,
        gradient_checkpointing: bool = False,
        tokenizer=None,
        dequantize: bool = False,
    ):
        super().__init__()
        if tuning not in ("full", "frozen", "lora", "qlora"):
            raise ValueError(f"llm tuning {tuning!r}: full, frozen, lora or qlora")
        if isinstance(model, nn.Module):
            self.tokenizer, self.dtype, causal_lm = tokenizer, model.dtype, model
        elif tuning == "qlora":
            if random_init:
                raise ValueError("llm tuning qlora is for pretrained weights")
            self.tokenizer, causal_lm = load_quantized_llm(model)
            if dequantize:
                causal_lm = causal_lm.dequantize().to(resolve_dtype(dtype))
            self.dtype = causal_lm.get_input_embeddings().weight.dtype
        else:
            self.dtype = torch.float32 if tuning == "full" else resolve_dtype(dtype)
            self.tokenizer, causal_lm = load_llm(model, self.dtype, random_init)
        causal_lm.config.use_cache = False
        if gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        if tuning != "full":
            causal_lm.requires_grad_(False)
        if tuning in ("lora", "qlora"):
            from peft import LoraConfig, inject_adapter_in_model

            adapter = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
            adapter.update(lora or {})
            if adapter["target_modules"] == "all-linear":
                adapter["target_modules"] = linear_layers(causal_lm)
            inject_adapter_in_model(LoraConfig(**adapter), causal_lm)
            for parameter in causal_lm.parameters():
                if parameter.requires_grad:  # adapters are trained in float32
                    parameter.data = parameter.data.float()
        self.tuning = tuning
        self._lengths: dict[int, int] = {}  # token to characters
        self.causal_lm = causal_lm

    @property
    def config(self):
        """The transformers config."""
        return self.causal_lm.config

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
        output = self.causal_lm.base_model(
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
        if getattr(config, "logits_scaling", None):  # Granite
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
        logits, targets = self.answer_logits(prompts, answers)
        loss = F.cross_entropy(
            logits, targets, reduction="sum", label_smoothing=label_smoothing
        )
        return loss / len(prompts), logits.detach().argmax(1)

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
        logits, targets = self.answer_logits(prompts, answers)
        log_probs = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return list(log_probs.split([len(answer) for answer in answers]))

    def answer_logits(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits at the target positions of all utterances, concatenated.

        The head runs at these positions only.

        Returns:
            logits (target tokens, vocabulary) and target tokens (target tokens,).
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
        return self.head(hidden[rows, places]), targets


@functools.lru_cache(maxsize=1)
def load_llm_tokenizer(model: str):
    """Return the tokenizer of a hub id or folder.

    Cached: a training needs it for the LLM and for the preprocessor of each data set.

    Raises:
        UserError: the model or its tokenizer cannot be loaded.
    """
    from speechllm.pretrained.resolve import resolve_model
    from speechllm.text.t5_tokenizer import load_tokenizer

    return load_tokenizer(resolve_model(model))


def load_llm(model: str, dtype: torch.dtype, random_init: bool):
    """Return the tokenizer and the causal LM of a hub id or folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from speechllm.pretrained.resolve import resolve_model

    path = resolve_model(model)
    options = {"dtype": dtype, "attn_implementation": attention_implementation()}
    if random_init:
        config = AutoConfig.from_pretrained(path)
        causal_lm = AutoModelForCausalLM.from_config(config, **options)
    else:
        causal_lm = AutoModelForCausalLM.from_pretrained(path, **options)
    return load_llm_tokenizer(model), causal_lm


def attention_implementation() -> str | None:
    """Return the attention implementation: eager on a CPU, else the model's default.

    On a CPU the fused kernel is slower at the length of a sentence. None lets
    transformers choose: Gemma 2 caps its attention scores, which the fused kernel
    cannot.
    """
    return None if torch.cuda.is_available() else "eager"


def load_quantized_llm(model: str):
    """Return the tokenizer and the 4-bit causal LM of a hub id or folder.

    Norms, embeddings and the head are in float32, as peft prepares them.

    Raises:
        ValueError: this machine or this model cannot be quantised.
    """
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from speechllm.pretrained.resolve import resolve_model

    if obstacle := quantization_obstacle():
        raise ValueError(obstacle)
    path = resolve_model(model)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.bfloat16,
        attn_implementation=attention_implementation(),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    check_cpu_layers(causal_lm)
    causal_lm = prepare_model_for_kbit_training(
        causal_lm, use_gradient_checkpointing=False
    )
    return load_llm_tokenizer(model), causal_lm


def check_cpu_layers(causal_lm: nn.Module) -> None:
    """Work around defects of bitsandbytes' CPU kernels (0.50.2).

    They misread rows that are not a multiple of the block size of 64, and in
    evaluation mode repack weights with scales rounded to bfloat16.

    Raises:
        ValueError: a layer on the CPU has such rows.
    """
    for name, layer in causal_lm.named_modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        layer.support_avx512bf16_for_cpu = False
        if layer.in_features % 64 and layer.weight.device.type == "cpu":
            raise ValueError(
                f"qlora on a CPU needs layers of a multiple of 64 inputs; {name} has "
                f"{layer.in_features}: set tuning to lora"
            )


def quantization_obstacle() -> str | None:
    """Return the reason why this machine has no 4-bit weights, or None if it has."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from bitsandbytes import functional

        weights, state = functional.quantize_4bit(
            torch.ones(64, 64, device=device),
            quant_type="nf4",
            compress_statistics=True,
        )
        functional.dequantize_4bit(weights, state)
    except ImportError:
        return (
            "qlora needs bitsandbytes, which is not installed: pip install bitsandbytes"
        )
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"qlora: bitsandbytes has no 4-bit weights on this {device}: {reason}"
    return None


def linear_layers(causal_lm: nn.Module) -> list[str]:
    """Return the names of all linear layers but the head (LoRA's ``all-linear``)."""
    head = causal_lm.get_output_embeddings()
    return sorted(
        name
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )


def resolve_dtype(name: str) -> torch.dtype:
    """Convert ``float32``, ``bfloat16``, ``float16`` or ``auto`` to a dtype.

    ``auto`` is bfloat16 if the hardware multiplies it, else float32.

    Raises:
        ValueError: another name.
    """
    if name != "auto":
        if name not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {name!r}: float32, bfloat16, float16 or auto")
        return getattr(torch, name)
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
