"""Our LLM as a text translator: the second half of a cascade of our own parts.

The same LLM with the same LoRA learns to translate text, from the transcripts and
translations of the training examples. It then translates the transcripts that the
recognition of the speech model wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from speechllm.data.examples import utterance_of
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml


def text_pairs(examples: str | Path) -> list[tuple[str, str, str]]:
    """Sentence pairs of an example dir: (source, target, "source target" languages).

    They come from ``asr_st`` examples, and from ``st`` examples whose utterance has an
    ``asr`` example. Each pair stands once, however many speeds it was spoken at.

    Raises:
        UserError: there is no pair.
    """
    from speechllm.evaluation.groups import read_texts
    from speechllm.text.joint_target import split_target

    examples = Path(examples)
    texts = read_texts(examples / "text", collapse=False)
    pairs = {}
    for name, request in read_texts(examples / "utt2task").items():
        task, source, target = request.split()
        spoken = f"{utterance_of(name, task, target)}-asr-{source}"
        if task == "asr_st":
            pair = tuple(
                split_target(task, texts[name], f"{examples / 'text'}, {name}")
            )
        elif task == "st" and spoken in texts:
            pair = texts[spoken], texts[name]
        else:
            continue
        pairs[pair] = f"{source} {target}"
    if not pairs:
        raise UserError(
            f"{examples}: no asr_st example, and no st example whose asr example is "
            "there too"
        )
    return [(*pair, direction) for pair, direction in pairs.items()]


class TextTranslator:
    """An LLM that translates text, prompted as the speech model is.

    Args:
        model_dir: the speech model's folder; its LLM and prompts are used.
        train_examples: example dir whose sentence pairs are learnt.
        work_dir: where the trained LoRA is kept, so that a second start need not
            train again.
        epochs, learning_rate: of the training; warm-up over a tenth, cosine decay.
        beam_size: hypotheses kept; 1 is greedy.
        device: ``cpu``, ``cuda``, …
        dtype: that it decodes in; it trains in that of the speech model's config.
    """

    hears = False

    def __init__(
        self,
        model_dir: str | Path,
        train_examples: str | Path,
        work_dir: str | Path,
        epochs: int = 8,
        learning_rate: float = 5e-4,
        beam_size: int = 1,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        from speechllm.inference.loading import check_device, find_model
        from speechllm.text.prompts import read_prompts

        check_device(device)
        folder = find_model(model_dir)
        config = read_yaml(folder / "config.yaml")
        if not config.get("llm"):
            raise UserError(f"{folder}: a model without an LLM, which cannot translate")
        self.llm_conf = config["llm_conf"]
        self.prompts = read_prompts(folder / "prompts.yaml")
        self.pairs = text_pairs(train_examples)
        self.trained = Path(work_dir) / "translator.safetensors"
        self.epochs, self.learning_rate = epochs, learning_rate
        self.beam_size, self.device, self.dtype = beam_size, device, dtype

    def check(self, task: str, source: str, target: str) -> None:
        """Refuse a direction that no training pair has."""
        known = {direction for _, _, direction in self.pairs}
        if task != "asr" and f"{source} {target}" not in known:
            raise UserError(
                f"{task} from {source} into {target}: no training pair; there are "
                f"{', '.join(sorted(known))}"
            )

    def settings(self) -> dict:
        """All that an answer depends on, besides its input."""
        return {
            "training": self.training_key(),
            "beam_size": self.beam_size,
            "dtype": self.dtype,
        }

    def training_key(self) -> str:
        """A digest of what is trained, on what, and how."""
        parts = [
            self.llm_conf, self.prompts.tasks, self.prompts.languages,
            self.prompts.chat, self.pairs, self.epochs, self.learning_rate,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load(self) -> None:
        """Train the LLM unless an earlier start has, then build it to decode with."""
        import torch
        from safetensors.torch import load_file

        from speechllm.inference.loading import merge_adapters
        from speechllm.models.llm import LanguageModel

        if self.training_of_file() != self.training_key():
            self.train()
        own = {"dtype": self.dtype, "gradient_checkpointing": False, "dequantize": True}
        self.llm = LanguageModel(**{**self.llm_conf, **own})
        parameters = dict(self.llm.named_parameters())
        with torch.no_grad():
            for name, value in load_file(self.trained).items():
                parameters[name].copy_(value)
        merge_adapters(self.llm)
        self.llm.to(self.device).eval()

    def training_of_file(self) -> str | None:
        """The :meth:`training_key` of what was trained and kept, if anything was."""
        from safetensors import safe_open

        if not self.trained.exists():
            return None
        with safe_open(self.trained, "pt") as file:
            return (file.metadata() or {}).get("training")

    def embed(self, texts: Sequence[str], directions: Sequence[str]) -> list:
        """Prompt embeddings (positions, hidden) of sentences."""
        from speechllm.text.prompts import encode

        tokenizer = self.llm.tokenizer
        prompts = []
        for text, direction in zip(texts, directions):
            prefix, suffix = self.prompts.tokens("st", *direction.split(), tokenizer)
            prompts.append(prefix + encode(tokenizer, " " + text.strip()) + suffix)
        return self.llm.embed_lists(prompts)

    def train(self, batch_size: int = 16) -> None:
        """Train the LLM as its config says on the sentence pairs, and keep the result."""
        import torch
        from safetensors.torch import save_file
        from transformers import get_cosine_schedule_with_warmup

        from speechllm.models.llm import LanguageModel, resolve_dtype
        from speechllm.text.prompts import answer_tokens

        random.seed(1)
        torch.manual_seed(1)
        self.llm = LanguageModel(**self.llm_conf).to(self.device)
        trained = {n: p for n, p in self.llm.named_parameters() if p.requires_grad}
        if not trained:
            raise UserError(
                "the speech model's LLM is frozen; there is nothing to train"
            )
        parameters, autocast = list(trained.values()), resolve_dtype("auto")
        optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, weight_decay=0.01, fused=True
        )
        steps = self.epochs * math.ceil(len(self.pairs) / batch_size)
        schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        self.llm.train()
        begin = said = time.monotonic()
        step = 0
        for epoch in range(1, self.epochs + 1):
            order = sorted(
                self.pairs, key=lambda p: len(p[0]) * random.uniform(0.8, 1.25)
            )
            batches = [
                order[i : i + batch_size] for i in range(0, len(order), batch_size)
            ]
            random.shuffle(batches)
            total = 0.0
            for number, batch in enumerate(batches, 1):
                sources, targets, directions = zip(*batch)
                prompts = self.embed(sources, directions)
                answers = [answer_tokens(self.llm.tokenizer, t) for t in targets]
                with torch.autocast(
                    torch.device(self.device).type,
                    dtype=autocast,
                    enabled=autocast is not torch.float32,
                ):
                    loss, _ = self.llm.answer_loss(prompts, answers)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                step += 1
                total += loss.item()
                now = time.monotonic()
                if now - said < 15 and number < len(batches):
                    continue
                said, left = now, (now - begin) / step * (steps - step) / 60
                print(
                    f"progress: epoch {epoch}/{self.epochs}, batch {number}/"
                    f"{len(batches)}, loss {total / number:.3f}, "
                    f"about {left:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )
        self.trained.parent.mkdir(parents=True, exist_ok=True)
        partial = self.trained.with_suffix(".partial")
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in trained.items()},
            partial,
            {"training": self.training_key()},
        )
        partial.replace(self.trained)

    def answer(
        self, inputs: Sequence[str], task: str, source: str, target: str
    ) -> list[dict]:
        """Translate transcripts; what an ``asr`` example wants is there already."""
        import torch

        from speechllm.decoding.beam_search import beam_search
        from speechllm.decoding.options import SearchOptions

        if task == "asr":
            return [{"text": text, "tokens": text.split()} for text in inputs]
        tokenizer = self.llm.tokenizer
        with torch.inference_mode():
            prompts = self.embed(inputs, [f"{source} {target}"] * len(inputs))
            limits = [3 * len(p) + 20 for p in prompts]
            options = SearchOptions(beam_size=self.beam_size)
            nbests = beam_search(self.llm, prompts, limits, options)
        answers = []
        for text, nbest in zip(inputs, nbests):
            tokens = nbest[0].tokens
            spelt = tokenizer.decode(tokens, skip_special_tokens=True)
            answer = {
                "text": " ".join(spelt.split()),
                "tokens": tokenizer.convert_ids_to_tokens(tokens),
            }
            if task == "asr_st":
                answer["transcript"] = text
            answers.append(answer)
        return answers
