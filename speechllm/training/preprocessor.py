"""Preprocessing and collation of training examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from speechllm.audio.io import SAMPLING_RATE
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.text.joint_target import split_target
from speechllm.text.prompts import Prompts, answer_tokens
from speechllm.text.tasks import Task, task_of
from speechllm.training.hotword_sampling import HotwordSampler
from speechllm.utils.errors import UserError


class ExamplePreprocessor:
    """Tokeniser of one example's texts, which ESPnet calls for each example.

    Args:
        ctc_tokenizer: transcript to CTC labels, or None without CTC.
        llm_tokenizer: a transformers tokenizer, or None in CTC-only training.
        prompts: the prompts of all tasks; required with an LLM.
        max_samples: maximum length that the encoder accepts, or None.
        hotword_sampler: draws lists of hotwords for the prompts, or None.

    Attributes:
        epoch: number of the epoch, which lists of hotwords depend on.
    """

    def __init__(
        self,
        ctc_tokenizer: CTCTokenizer | None,
        llm_tokenizer,
        prompts: Prompts | None,
        max_samples: int | None = None,
        hotword_sampler: HotwordSampler | None = None,
    ):
        self.ctc_tokenizer = ctc_tokenizer
        self.llm_tokenizer = llm_tokenizer
        self.prompts = prompts
        self.max_samples = max_samples
        self.hotword_sampler = hotword_sampler
        self.epoch = 0
        self.prompt_tokens: dict[Task, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(
        self, uid: str, data: dict[str, str | np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Tokenise one example.

        Args:
            uid: the example's id, for error messages.
            data: ``speech`` (samples,) at 16 kHz, ``text`` the target, ``text_ctc``
                the normalised transcript, ``task`` as ``<task> <source> <target>``.

        Returns:
            ``speech`` (samples,) float32, and int64 arrays ``text``, ``text_ctc``,
            ``prompt_prefix``, ``prompt_suffix``, each (tokens,).

        Raises:
            UserError: the audio is empty or too long, or the task or text is invalid.
        """
        example = {}
        if "speech" in data:
            speech = np.asarray(data["speech"], dtype=np.float32)
            if len(speech) == 0:
                raise UserError(f"utterance {uid}: no samples; run stage 4 again")
            if self.max_samples is not None and len(speech) > self.max_samples:
                seconds = len(speech) / SAMPLING_RATE
                limit = self.max_samples / SAMPLING_RATE
                raise UserError(
                    f"utterance {uid}: {seconds:.1f} s, the encoder takes "
                    f"{limit:.0f} s; lower --max_wav_duration"
                )
            example["speech"] = speech
        if self.ctc_tokenizer is not None and "text_ctc" in data:
            example["text_ctc"] = np.array(
                self.ctc_tokenizer(data["text_ctc"]), dtype=np.int64
            )
        if self.llm_tokenizer is not None and "task" in data:
            task = task_of(data["task"], f"utt2task, example {uid}")
            texts = split_target(task.name, data["text"], f"text, example {uid}")
            hotwords: tuple[str, ...] = ()
            if self.hotword_sampler is not None:
                hotwords = self.hotword_sampler.draw(uid, task, texts, self.epoch)
            prefix, suffix = self.prompt(task, hotwords)
            example["prompt_prefix"], example["prompt_suffix"] = prefix, suffix
            answer = answer_tokens(self.llm_tokenizer, *texts)
            example["text"] = np.array(answer, dtype=np.int64)
        return example

    def prompt(
        self, task: Task, hotwords: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids (tokens,) before and after the speech."""
        if not hotwords and task in self.prompt_tokens:
            return self.prompt_tokens[task]  # takes longer than the answer
        prefix, suffix = self.prompts.tokens(*task, self.llm_tokenizer, hotwords)
        tokens = np.array(prefix, dtype=np.int64), np.array(suffix, dtype=np.int64)
        if not hotwords:
            self.prompt_tokens[task] = tokens
        return tokens


def begin_epoch(factory: object, epoch: int) -> None:
    """Set the epoch of the preprocessor that an ESPnet factory of batches uses."""
    preprocess = getattr(getattr(factory, "dataset", None), "preprocess", None)
    if isinstance(preprocess, ExamplePreprocessor):
        preprocess.epoch = epoch


def collate(
    examples: Sequence[tuple[str, dict[str, np.ndarray]]],
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Pad examples to a batch for ESPnet's trainer.

    ESPnet's own collation does the same, but importing it needs its text-to-speech
    front ends.

    Args:
        examples: (id, arrays) of each; waveforms are padded with 0, token ids with -1.

    Returns:
        The ids; ``name`` (batch, longest) and ``name_lengths`` (batch,) of each array.
    """
    batch = {}
    for name in examples[0][1]:
        arrays = [torch.from_numpy(arrays[name]) for _, arrays in examples]
        padding = 0.0 if arrays[0].is_floating_point() else -1
        batch[name] = torch.nn.utils.rnn.pad_sequence(
            arrays, batch_first=True, padding_value=padding
        )
        batch[f"{name}_lengths"] = torch.tensor([len(a) for a in arrays])
    return [uid for uid, _ in examples], batch
