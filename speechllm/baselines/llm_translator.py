"""The speech model's LLM as a text translator, the second stage of a cascade.

The LLM, with the same LoRA configuration, is fine-tuned on the transcripts and
translations of the training examples. It then translates the transcripts that the
speech model wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.baselines.base import TextTranslator
from speechllm.baselines.progress import (
    PROGRESS_SECONDS,
    SAVE_SECONDS,
    print_training_progress,
)
from speechllm.data.examples import read_utt2task, utterance_of
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, previous_name, read_yaml

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def text_pairs(examples: str | Path) -> list[tuple[str, str, str]]:
    """Return the sentence pairs of an example dir: (source, target, languages).

    They are taken from ``asr_st`` examples, and from ``st`` examples whose utterance
    has an ``asr`` example. Duplicates, such as copies at other speeds, are dropped.
    The languages are written ``"<source> <target>"``.

    Raises:
        UserError: the example dir has no sentence pair.
    """
    from speechllm.evaluation.groups import read_texts
    from speechllm.text.joint_target import split_target

    examples = Path(examples)
    texts = read_texts(examples / "text", collapse=False)
    pairs: dict[tuple[str, ...], str] = {}
    for name, (task, source, target) in read_utt2task(examples).items():
        asr_example = f"{utterance_of(name, task, target)}-asr-{source}"
        if task == "asr_st":
            pair = tuple(
                split_target(task, texts[name], f"{examples / 'text'}, {name}")
            )
        elif task == "st" and asr_example in texts:
            pair = texts[asr_example], texts[name]
        else:
            continue
        pairs[pair] = f"{source} {target}"
    if not pairs:
        raise UserError(
            f"{examples}: no sentence pairs; they come from asr_st examples, and from "
            "st examples with an asr example of the same utterance"
        )
    return [(*pair, languages) for pair, languages in pairs.items()]


class Course:
    """How far a training is: progress lines, and a file from which it resumes.

    Args:
        trained: parameters by name.
        optimizer, schedule: of them.
        steps: number of all steps.
        key: of the training; a file of another is not read.
    """

    def __init__(
        self,
        trained: dict[str, Parameter],
        optimizer: Optimizer,
        schedule: LRScheduler,
        steps: int,
        key: str,
    ):
        self.trained, self.optimizer, self.schedule = trained, optimizer, schedule
        self.steps, self.key = steps, key
        self.done = self.resumed = 0  # steps, and those of the calls before
        self.losses: list[float] = []  # since the last progress line
        self.begin = self.reported = self.saved = time.monotonic()

    @property
    def device(self) -> torch.device:
        """Device of the trained weights, whose random numbers dropout uses."""
        return next(iter(self.trained.values())).device

    def count(self, loss: float) -> None:
        """Count a step."""
        self.done += 1
        self.losses.append(loss)

    def report(self) -> None:
        """Print a progress line every few seconds, and at the end."""
        now = time.monotonic()
        if now - self.reported < PROGRESS_SECONDS and self.done < self.steps:
            return
        self.reported = now
        pace = (now - self.begin) / (self.done - self.resumed)
        left = pace * (self.steps - self.done)
        print_training_progress(f"step {self.done}/{self.steps}", self.losses, left)

    def is_save_due(self) -> bool:
        """Tell if the last save is half an hour ago."""
        return time.monotonic() - self.saved >= SAVE_SECONDS

    def save(self, path: Path) -> None:
        """Write weights, optimizer, schedule and random numbers."""
        import torch

        state = {
            "training": self.key,
            "done": self.done,
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        device = self.device
        if device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            state["random_mps"] = torch.mps.get_rng_state()
        with atomic_open(path, "wb") as stream:
            torch.save(state, stream)
        self.saved = time.monotonic()

    def resume(self, path: Path) -> None:
        """Go on from a file of :meth:`save`; that of another training is kept aside."""
        import torch

        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("training") != self.key:
            path.replace(previous_name(path))
            return
        with torch.no_grad():
            for name, weight in state["weights"].items():
                self.trained[name].copy_(weight)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = self.resumed = state["done"]
        torch.set_rng_state(state["random"])
        device = self.device
        if device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], device)
        elif device.type == "mps" and "random_mps" in state:
            torch.mps.set_rng_state(state["random_mps"])
        print(f"resumed after step {self.done}", file=sys.stderr, flush=True)


class LLMTranslator(TextTranslator):
    """An LLM that translates text, with the prompts of the speech model.

    Args:
        model_dir: folder of the speech model, whose LLM and prompts are used.
        train_examples: example dir whose sentence pairs are trained on.
        work_dir: folder for the trained weights, which a re-run loads.
        epochs: number of training epochs.
        learning_rate: peak learning rate; linear warm-up over the first tenth of the
            steps, then cosine decay.
        beam_size: number of hypotheses in the beam; 1 is greedy search.
        device: ``cpu``, ``cuda``, …
        dtype: precision of decoding; the training uses that of the speech model's
            config.

    Raises:
        UserError: the speech model has no LLM, or there are no sentence pairs.
    """

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
        from speechllm.inference.loading import choose_device, find_model
        from speechllm.text.prompts import read_prompts

        device = choose_device(device)
        folder = find_model(model_dir)
        config = read_yaml(folder / "config.yaml")
        if not config.get("llm"):
            raise UserError(
                f"{folder}: a model without an LLM cannot translate; give one with an "
                "LLM"
            )
        self.llm_conf = config["llm_conf"]
        self.prompts = read_prompts(folder / "prompts.yaml")
        self.pairs = text_pairs(train_examples)
        self.weights_file = Path(work_dir) / "translator.safetensors"
        self.epochs, self.learning_rate = epochs, learning_rate
        self.beam_size, self.device, self.dtype = beam_size, device, dtype

    def check(self, task: str, source: str, target: str) -> None:
        """Raise UserError if no training pair has the translation direction."""
        trained = {languages for _, _, languages in self.pairs}
        if task != "asr" and f"{source} {target}" not in trained:
            raise UserError(
                f"{task} from {source} into {target}: no training pair; the training "
                f"examples have {', '.join(sorted(trained))}"
            )

    def settings(self) -> dict:
        """Return everything that a hypothesis depends on except its input."""
        return {
            "training": self.training_key(),
            "beam_size": self.beam_size,
            "dtype": self.dtype,
        }

    def training_key(self) -> str:
        """Return a digest of the LLM's configuration, the data and the options."""
        parts = [
            self.llm_conf, self.prompts.tasks, self.prompts.languages,
            self.prompts.chat, self.pairs, self.epochs, self.learning_rate,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load(self) -> None:
        """Load the LLM for decoding; train it first unless an earlier run has."""
        import torch
        from safetensors.torch import load_file

        from speechllm.inference.loading import merge_adapters
        from speechllm.models.llm import LanguageModel

        if self.training_key_of_file() != self.training_key():
            self.train()
        own = {"dtype": self.dtype, "gradient_checkpointing": False, "decoding": True}
        self.llm = LanguageModel(**{**self.llm_conf, **own})
        parameters = dict(self.llm.named_parameters())
        with torch.no_grad():
            for name, value in load_file(self.weights_file).items():
                parameters[name].copy_(value)
        merge_adapters(self.llm)
        self.llm.to(self.device).eval()

    def training_key_of_file(self) -> str | None:
        """Return the :meth:`training_key` stored with the weights, None without any.

        Raises:
            UserError: the file has none, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not self.weights_file.exists():
            return None
        key = None
        with suppress(SafetensorError), safe_open(self.weights_file, "pt") as file:
            key = (file.metadata() or {}).get("training")
        if key is None:
            raise UserError(
                f"{self.weights_file}: not the weights of this program, or damaged; "
                "move it away"
            )
        return key

    def embed(self, texts: Sequence[str], languages: Sequence[str]) -> list[Tensor]:
        """Return the prompt embeddings (positions, hidden) of each sentence."""
        from speechllm.text.prompts import encode

        tokenizer = self.llm.tokenizer
        prompts = []
        for text, pair in zip(texts, languages):
            source, target = pair.split()
            prefix, suffix = self.prompts.tokens("st", source, target, tokenizer)
            prompts.append(prefix + encode(tokenizer, " " + text.strip()) + suffix)
        return self.llm.embed_lists(prompts)

    def train(self, batch_size: int = 16) -> None:
        """Train the LLM on the sentence pairs and save the trained weights.

        Every half hour, and on SIGTERM and SIGUSR1, the training is saved in
        ``work_dir``, where the next call resumes.

        Raises:
            UserError: the LLM is frozen, or the training was stopped by a signal.
        """
        import torch
        from safetensors.torch import save
        from transformers import get_cosine_schedule_with_warmup

        from speechllm.models.llm import LanguageModel
        from speechllm.training.signals import StopRequest, handle_stop_signals, stopped

        torch.manual_seed(1)
        self.llm = LanguageModel(**self.llm_conf).to(self.device)
        trained = {n: p for n, p in self.llm.named_parameters() if p.requires_grad}
        if not trained:
            raise UserError(
                "the speech model's LLM is frozen and cannot be trained; use a model "
                "with LoRA"
            )
        optimizer = torch.optim.AdamW(
            trained.values(), lr=self.learning_rate, weight_decay=0.01, fused=True
        )
        steps = self.epochs * math.ceil(len(self.pairs) / batch_size)
        schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        course = Course(trained, optimizer, schedule, steps, self.training_key())
        resume_file, stop = self.weights_file.with_suffix(".training.pt"), StopRequest()
        course.resume(resume_file)
        self.llm.train()
        generator = random.Random(1)
        batches = [
            batch
            for _ in range(self.epochs)
            for batch in self.shuffled_batches(batch_size, generator)
        ]
        with handle_stop_signals(stop):
            for batch in batches[course.done :]:
                self.step(batch, course)
                course.report()
                if stop.number or course.is_save_due():
                    course.save(resume_file)
                if stop.number:
                    raise stopped(stop.number, f"step {course.done}")
            weights = {n: p.detach().cpu().contiguous() for n, p in trained.items()}
            with atomic_open(self.weights_file, "wb") as stream:
                stream.write(save(weights, {"training": self.training_key()}))
            resume_file.unlink(missing_ok=True)

    def step(self, batch: Sequence[tuple[str, str, str]], course: Course) -> None:
        """Train on a batch of sentence pairs."""
        import torch

        from speechllm.models.precision import resolve_dtype

        dtype = resolve_dtype("auto")
        device = torch.device(self.device).type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32):
            loss = self.loss(batch)
        course.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(course.trained.values()), 1.0)
        course.optimizer.step()
        course.schedule.step()
        course.count(loss.item())

    def shuffled_batches(
        self, batch_size: int, generator: random.Random
    ) -> list[list[tuple[str, str, str]]]:
        """Return an epoch's sentence pairs in shuffled batches of similar length."""
        order = sorted(
            self.pairs, key=lambda p: len(p[0]) * generator.uniform(0.8, 1.25)
        )
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        generator.shuffle(batches)
        return batches

    def loss(self, pairs: Sequence[tuple[str, str, str]]) -> Tensor:
        """Return the next-token cross-entropy of the translations, a scalar."""
        from speechllm.text.prompts import answer_tokens

        sources, targets, languages = zip(*pairs)
        labels = [answer_tokens(self.llm.tokenizer, text) for text in targets]
        return self.llm.answer_loss(self.embed(sources, languages), labels)[0]

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[dict]:
        """Translate sentences."""
        import torch

        from speechllm.decoding.beam_search import beam_search
        from speechllm.decoding.hypothesis import SearchRequest
        from speechllm.decoding.options import SearchOptions

        tokenizer = self.llm.tokenizer
        with torch.inference_mode():
            prompts = self.embed(texts, [f"{source} {target}"] * len(texts))
            requests = [SearchRequest(p, 3 * len(p) + 20) for p in prompts]
            options = SearchOptions(beam_size=self.beam_size)
            nbests = beam_search(self.llm, requests, options)
        outputs = []
        for nbest in nbests:
            tokens = nbest[0].tokens
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            outputs.append(
                {
                    "text": " ".join(text.split()),
                    "tokens": tokenizer.convert_ids_to_tokens(tokens),
                }
            )
        return outputs
