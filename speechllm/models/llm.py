"""The decoder-only LLM: loaded, tuned and read without work that no loss needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.models.encoder import length_mask


class LanguageModel(nn.Module):
    """A causal LM of transformers, whole, frozen, with LoRA or with QLoRA.

    The head is apart from the body, so that logits are computed only where a loss or
    a decision needs them.

    Args:
        model: hub id or folder, or a model of transformers that is built already.
        tuning: ``"full"``, ``"frozen"``, ``"lora"``, or ``"qlora"``: LoRA on weights
            in 4 bits, as in Dettmers et al. 2023 ("QLoRA: Efficient Finetuning of
            Quantized LLMs", section 3): NF4 with double quantisation, multiplied in
            bfloat16 (see :func:`quantization_obstacle`).
        lora: options of ``peft.LoraConfig`` (``r``, ``lora_alpha``, ``lora_dropout``,
            ``target_modules``; all linear layers by default).
        dtype: of the weights that are not trained: ``"float32"``, ``"bfloat16"``, or
            ``"auto"``: bfloat16 where the machine multiplies it in hardware. They
            keep it when a trainer casts the whole model.
        random_init: build the architecture from its config, without its weights.
        gradient_checkpointing: recompute activations in the backward pass.
        tokenizer: that of a model that is built already.
        dequantize: of ``qlora``: have the values of the 4-bit weights in ``dtype``, as
            decoding wants them: adapters can be merged, and no kernel is needed.
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
                if parameter.requires_grad:  # adapters learn in float32
                    parameter.data = parameter.data.float()
        self.tuning = tuning
        self._lengths: dict[int, int] = {}  # of tokens, in characters
        self.causal_lm = causal_lm

    @property
    def config(self):
        """The model's own config of transformers."""
        return self.causal_lm.config

    @property
    def hidden_size(self) -> int:
        """Dimension of an input embedding."""
        return self.causal_lm.get_input_embeddings().embedding_dim

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    def token_length(self, token: int) -> int:
        """Characters of a token's text, the space in front of a word included."""
        if token not in self._lengths:
            self._lengths[token] = len(self.tokenizer.decode([token]))
        return self._lengths[token]

    def _apply(self, fn, recurse: bool = True) -> LanguageModel:
        """Move the weights, but keep their precision: ESPnet's trainer casts all."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def train(self, mode: bool = True) -> LanguageModel:
        """Set the mode; a frozen LLM stays in evaluation mode."""
        return super().train(mode and self.tuning != "frozen")

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings (…, hidden) of token ids (…)."""
        return self.causal_lm.get_input_embeddings()(tokens)

    def embed_lists(self, lists: Sequence[Sequence[int]]) -> list[Tensor]:
        """Input embeddings (tokens, hidden) of each list of ids.

        They are looked up at once: every lookup has a gradient as large as the
        whole table.
        """
        device = self.causal_lm.get_input_embeddings().weight.device
        tokens = torch.tensor([t for ids in lists for t in ids], device=device)
        return list(self.embed(tokens.long()).split([len(ids) for ids in lists]))

    def body(self, embeddings: Tensor, mask: Tensor, cache=None, positions=None):
        """Run all layers but the head.

        Args:
            embeddings: (batch, new positions, hidden)
            mask: (batch, old and new positions), 1 where there is something.
            cache: a cache of transformers, or None.
            positions: (batch, new positions); counted from the mask when None.

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
        """Logits (…, vocabulary) in float32 of hidden states (…, hidden)."""
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
        """Next-token cross-entropy on the answers alone.

        The head is computed only where an answer is predicted. The loss is summed
        over an answer and averaged over the batch, as ESPnet's attention loss is.

        Args:
            prompts: (positions, hidden) of what stands before each answer.
            answers: token ids of each, end of text included.

        Returns:
            The loss, and the best token at each place of all answers, one behind
            the other (answer tokens,).
        """
        logits, targets = self.answer_logits(prompts, answers)
        loss = F.cross_entropy(
            logits, targets, reduction="sum", label_smoothing=label_smoothing
        )
        return loss / len(prompts), logits.detach().argmax(1)

    def answer_log_probs(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Log probability of each token of each answer, given those before it.

        Args:
            prompts: (positions, hidden) of what stands before each answer.
            answers: token ids of each, end of text included.

        Returns:
            (tokens,) for each answer.
        """
        logits, targets = self.answer_logits(prompts, answers)
        log_probs = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return list(log_probs.split([len(answer) for answer in answers]))

    def answer_logits(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Logits (answer tokens, vocabulary) at the places of all answers, one behind
        the other, and the tokens (answer tokens,) that stand there.
        """
        sequences = [
            torch.cat([prompt, said])
            for prompt, said in zip(
                prompts, self.embed_lists([a[:-1] for a in answers]), strict=True
            )
        ]
        lengths = torch.tensor([len(s) for s in sequences], device=prompts[0].device)
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        rows, places = [], []
        for row, (prompt, answer) in enumerate(zip(prompts, answers)):
            rows += [row] * len(answer)
            places += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
        targets = torch.tensor([t for a in answers for t in a], device=padded.device)
        mask = length_mask(lengths, padded.shape[1]).long()
        hidden = self.body(padded, mask)  # (batch, positions, hidden)
        return self.head(hidden[rows, places]), targets


def load_llm(model: str, dtype: torch.dtype, random_init: bool):
    """The tokenizer and the causal LM of a hub id or folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from speechllm.pretrained.resolve import resolve_model
    from speechllm.text.t5_tokenizer import load_tokenizer

    path = resolve_model(model)
    options = {"dtype": dtype, "attn_implementation": attention()}
    if random_init:
        config = AutoConfig.from_pretrained(path)
        causal_lm = AutoModelForCausalLM.from_config(config, **options)
    else:
        causal_lm = AutoModelForCausalLM.from_pretrained(path, **options)
    return load_tokenizer(path), causal_lm


def attention() -> str | None:
    """The kernel: on a CPU the fused one is the slower at a sentence's length.

    None is the best that the architecture has: Gemma 2 caps its scores, which the
    fused kernel cannot.
    """
    return None if torch.cuda.is_available() else "eager"


def load_quantized_llm(model: str):
    """The tokenizer and the causal LM of a hub id or folder, in 4 bits.

    Norms, embeddings and the head are in float32, as peft prepares them.

    Raises:
        ValueError: it cannot be quantised here.
    """
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from speechllm.pretrained.resolve import resolve_model
    from speechllm.text.t5_tokenizer import load_tokenizer

    if obstacle := quantization_obstacle():
        raise ValueError(obstacle)
    path = resolve_model(model)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.bfloat16,
        attn_implementation=attention(),
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
    return load_tokenizer(path), causal_lm


def check_cpu_layers(causal_lm: nn.Module) -> None:
    """Keep bitsandbytes' CPU kernels to what they do right (0.50.2).

    They read rows that are no multiple of a block of 64 wrongly, and pack weights in
    evaluation with scales rounded to bfloat16.

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
    """Why weights cannot be had in 4 bits here, or None where they can."""
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
        return "qlora needs bitsandbytes, which is not here: pip install bitsandbytes"
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"qlora: bitsandbytes has no 4-bit weights on this {device}: {reason}"
    return None


def linear_layers(causal_lm: nn.Module) -> list[str]:
    """Names of all linear layers but the head, as LoRA's ``all-linear`` has them."""
    head = causal_lm.get_output_embeddings()
    return sorted(
        name
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )


def resolve_dtype(name: str) -> torch.dtype:
    """Turn ``float32``, ``bfloat16``, ``float16`` or ``auto`` into a dtype."""
    if name != "auto":
        if name not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {name!r}: float32, bfloat16, float16 or auto")
        return getattr(torch, name)
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
