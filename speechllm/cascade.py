"""The cascade that a translation model is measured against.

The same LLM with the same LoRA learns to translate text, from the transcripts and
translations of the training examples. It then translates the transcripts that the
recognition of the speech model wrote.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from speechllm.errors import UserError
from speechllm.files import atomic_open, read_yaml


def text_pairs(examples: str | Path) -> list[tuple[str, str, str]]:
    """Sentence pairs of an example dir: (source, target, "source target" languages).

    The source is the answer of the ``asr`` example of the same utterance; each pair
    stands once, however many speeds it was spoken at.
    """
    from speechllm.datadir import read_table

    examples = Path(examples)
    texts = read_table(examples / "text")
    pairs = {}
    for name, task in read_table(examples / "utt2task").items():
        kind, source, target = task.split()
        if kind != "st":
            continue
        spoken = recognition_of(name, source, target)
        if spoken in texts:
            pairs[texts[spoken], texts[name]] = f"{source} {target}"
    if not pairs:
        raise UserError(f"{examples}: no st example whose asr example is there too")
    return [(s, t, direction) for (s, t), direction in pairs.items()]


def recognition_of(example: str, source: str, target: str) -> str:
    """Id of the ``asr`` example of the utterance of an ``st`` example."""
    return example.removesuffix(f"-st-{target}") + f"-asr-{source}"


class TextTranslator:
    """An LLM that translates text, prompted as the speech model is.

    Args:
        llm_conf: options of ``LanguageModel``, as in the speech model's config.
        prompts: the same prompts; the source text stands where the speech was.
    """

    def __init__(self, llm_conf: dict, prompts):
        import torch

        from speechllm.model.llm import LanguageModel, resolve_dtype

        torch.manual_seed(1)
        self.llm = LanguageModel(**llm_conf)
        self.prompts = prompts
        self.autocast = resolve_dtype("auto")

    def embed(self, text: str, direction: str):
        """Prompt embeddings (positions, hidden) of one sentence."""
        from speechllm.prompts import encode

        tokenizer = self.llm.tokenizer
        prefix, suffix = self.prompts.tokens("st", *direction.split(), tokenizer)
        return self.llm.embed_list(
            prefix + encode(tokenizer, " " + text.strip()) + suffix
        )

    def train(
        self,
        pairs: Sequence[tuple[str, str, str]],
        epochs: int,
        learning_rate: float,
        batch_size: int,
        seed: int = 1,
    ) -> None:
        """Train the LoRA on sentence pairs; warm-up over a tenth, then cosine decay."""
        import torch
        from transformers import get_cosine_schedule_with_warmup

        from speechllm.prompts import answer_tokens

        random.seed(seed)
        torch.manual_seed(seed)
        parameters = [p for p in self.llm.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
        steps = epochs * math.ceil(len(pairs) / batch_size)
        schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        self.llm.train()
        begin, step = time.monotonic(), 0
        for epoch in range(1, epochs + 1):
            order = sorted(pairs, key=lambda p: len(p[0]) * random.uniform(0.8, 1.25))
            batches = [
                order[i : i + batch_size] for i in range(0, len(order), batch_size)
            ]
            random.shuffle(batches)
            total = 0.0
            for batch in batches:
                prompts = [self.embed(s, direction) for s, _, direction in batch]
                answers = [answer_tokens(self.llm.tokenizer, t) for _, t, _ in batch]
                enabled = self.autocast is not torch.float32
                with torch.autocast("cpu", dtype=self.autocast, enabled=enabled):
                    loss, _ = self.llm.answer_loss(prompts, answers)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                step += 1
                total += loss.item()
            left = (time.monotonic() - begin) / step * (steps - step) / 60
            print(
                f"progress: epoch {epoch}/{epochs}, loss {total / len(batches):.3f}, "
                f"about {left:.0f} min left",
                file=sys.stderr,
                flush=True,
            )

    def translate(
        self, texts: Sequence[str], direction: str, batch_size: int, options
    ) -> list[str]:
        """Translate sentences, in float32."""
        import torch

        from speechllm.inference import batches_by_length, merge_adapters
        from speechllm.model.search import beam_search

        merge_adapters(self.llm)
        self.llm.eval().float()
        self.llm.dtype = torch.float32
        results = [""] * len(texts)
        for batch in batches_by_length([len(t) for t in texts], batch_size):
            prompts = [self.embed(texts[i], direction) for i in batch]
            limits = [3 * len(p) + 20 for p in prompts]
            for index, nbest in zip(
                batch, beam_search(self.llm, prompts, limits, options)
            ):
                results[index] = self.llm.tokenizer.decode(
                    nbest[0].tokens, skip_special_tokens=True
                ).strip()
        return results


def run_cascade(
    model_dir: str | Path,
    train_examples: str | Path,
    test_examples: str | Path,
    hypotheses: str | Path,
    output: str | Path,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    options,
) -> int:
    """Train the translator, translate the ASR's hypotheses, write a decode dir.

    Args:
        model_dir: the speech model's folder; its LLM and prompts are used.
        train_examples: example dir whose pairs are trained on.
        test_examples: example dir to translate.
        hypotheses: the speech model's decode dir of it, with ``text``.
        output: decode dir to write: ``text`` of the recognition as it was, and of
            the translation by the cascade.

    Returns:
        The number of sentences translated.
    """
    from speechllm.datadir import read_table
    from speechllm.prompts import read_prompts

    model_dir = Path(model_dir)
    config = read_yaml(model_dir / "config.yaml")
    translator = TextTranslator(
        config["llm_conf"], read_prompts(model_dir / "prompts.yaml")
    )
    texts = read_table(Path(hypotheses) / "text")
    tasks = read_table(Path(test_examples) / "utt2task")
    translator.train(text_pairs(train_examples), epochs, learning_rate, batch_size)
    answers = {name: texts[name] for name, task in tasks.items() if task[:4] == "asr "}
    todo: dict[str, dict[str, str]] = {}
    for name, task in tasks.items():
        kind, source, target = task.split()
        if kind == "st":
            spoken = recognition_of(name, source, target)
            if spoken not in texts:
                raise UserError(f"{hypotheses}/text: no transcript of {name}")
            todo.setdefault(f"{source} {target}", {})[name] = texts[spoken]
    for direction, sources in todo.items():
        names = list(sources)
        translations = translator.translate(
            [sources[n] for n in names], direction, batch_size, options
        )
        answers.update(zip(names, translations))
    output = Path(output)
    with atomic_open(output / "text") as stream:
        for name in sorted(answers):
            stream.write(f"{name} {' '.join(answers[name].split())}".rstrip() + "\n")
    return sum(len(s) for s in todo.values())
