"""The public API: a trained model that turns speech into text.

from speechllm import SpeechToText

model = SpeechToText.from_pretrained("exp/speechllm_train/model")
for result in model.transcribe(["a.wav", "b.flac"], language="en"):
    print(result.text)
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechllm.audio.io import check_waveform
from speechllm.decoding.confidence import Calibration, read_calibration
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.nbest_search import ctc_greedy_search, nbest_search
from speechllm.decoding.options import DECODING_SCHEMA, SearchOptions, search_options
from speechllm.decoding.result import Result
from speechllm.decoding.vllm_engine import VLLMLanguageModel, check_vllm_search
from speechllm.inference.backends import check_engine, place_model
from speechllm.inference.encoding import (
    QUEUE,
    TRANSCRIBED,
    device_of,
    encode_batch,
    first_passes,
    language_probabilities_of,
)
from speechllm.inference.generation_config import (
    LIMITS,
    Config,
    read_settings,
    split_settings,
)
from speechllm.inference.guard import Guard, GuardDecision, search_if_kept
from speechllm.inference.guard_thresholds import Thresholds, read_thresholds
from speechllm.inference.loading import (
    choose_device,
    find_model,
    load_model,
    speech_decoder_loader,
)
from speechllm.inference.results import add_decision, add_words, make_result
from speechllm.inference.score_weights import ScoreWeights, read_score_weights
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.models.speech_llm import SpeechLLM
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import CTCTokenizer, LabelTokenizer, has_pieces
from speechllm.text.prompts import Prompts, requested_task
from speechllm.text.tasks import Task
from speechllm.utils.batching import batches_by_length
from speechllm.utils.errors import UserError
from speechllm.utils.schema import check_options


class SpeechToText:
    """Speech recognition and translation with a trained model.

    Build one with :meth:`from_pretrained`.
    """

    def __init__(
        self,
        model: SpeechLLM,
        prompts: Prompts,
        generation: dict[str, Any] | None = None,
        thresholds: Thresholds | None = None,
        calibration: Calibration | None = None,
        bpe_model: str | Path | None = None,
        batch_size: int | None = None,
        load_speech_decoder: Callable[[], SpeechDecoder] | None = None,
        score_weights: ScoreWeights | None = None,
    ):
        """Wrap a model.

        Args:
            prompts: the prompts it was trained with.
            generation: its defaults for fields of ``SearchOptions``.
            thresholds: of the guard, which is off without them.
            calibration: of word confidence; without one it is the CTC probability.
            bpe_model: sentencepiece model of the CTC labels, if they are its pieces;
                without it their CTC branch is not used.
            batch_size: default of the number of utterances decoded concurrently.
            load_speech_decoder: loads the speech model that the encoder was taken from,
                whose decoder makes the first pass, when it is first used.
            score_weights: of the list with a first pass, see ``SearchOptions``.

        Raises:
            UserError: the sentencepiece model has other pieces.
        """
        self.model = model.eval()
        self.llm = model.llm
        self.prompts = prompts
        self.generation = dict(generation or {})
        self.calibration = calibration
        self.batch_size = batch_size
        self.load_speech_decoder = load_speech_decoder
        self.folder: Path | None = None
        self.first_passes: dict | None = None  # kept where speech is decoded again
        self.score_weights = score_weights or ScoreWeights()
        self.ctc_tokenizer: CTCTokenizer | None = None
        if model.ctc_trained and not has_pieces(model.token_list):
            self.ctc_tokenizer = CTCTokenizer(model.token_list)
        elif model.ctc_trained and bpe_model is not None:
            self.ctc_tokenizer = CTCTokenizer(model.token_list, bpe_model)
        self.guard: Guard | None
        if self.llm is None:
            labels = LabelTokenizer(model.token_list)
            self.codec = AnswerCodec(labels, self.ctc_tokenizer)
        else:
            self.codec = AnswerCodec(self.llm.tokenizer, self.ctc_tokenizer)
        self.set_thresholds(thresholds)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str | None = None,
        engine: str | None = None,
        revision: str | None = None,
        config: Config | None = None,
        strict: bool = False,
    ) -> SpeechToText:
        """Load a model with its decoding settings.

        Args:
            path: a folder that stage 10 wrote, the folder of a training that holds one
                as ``model``, a folder in Nue-ASR's released format, or a hub id.
            device: ``cpu``, ``cuda``, …, or ``auto``.
            dtype: ``float32``, ``bfloat16``, ``float16``, ``auto``, or ``4bit``: the
                weights of the LLM in 4 bits, all else in bfloat16 if there is a GPU;
                None: that of the settings, else float32. In float32 the text of an
                utterance does not depend on its batch.
            engine: kernels of matrix products; ``auto`` selects the fastest for the
                device, :data:`speechllm.inference.backends.ENGINES` lists them.
                ``vllm``: the LLM runs in vLLM, with greedy search and sampling. None:
                that of the settings, else ``auto``.
            revision: commit of a hub id; the newest that is known here if None.
            config: decoding settings, a YAML file or its content, in place of the
                folder's ``generation_config.yaml``.
            strict: refuse other pretrained weights than those it was trained on,
                instead of a warning.

        Raises:
            UserError: no such model, or one that is based on another vocabulary, or
                with ``strict`` on other weights; or the engine cannot be used.
        """
        folder = find_model(path, revision)
        device = choose_device(device)
        search, job = split_settings(read_settings(config, folder))
        dtype, engine = dtype or job["dtype"], engine or job["engine"]
        check_engine(engine, dtype, device)
        model, prompts, generation = load_model(folder, dtype, strict)
        place_model(model, device, engine)
        bpe_model = folder / "bpe.model"
        loaded = cls(
            model,
            prompts,
            {**generation, **search},
            read_thresholds(folder),
            read_calibration(folder),
            bpe_model if bpe_model.is_file() else None,
            job["batch_size"],
            speech_decoder_loader(folder, device, dtype, engine),
            read_score_weights(folder),
        )
        loaded.folder = folder
        return loaded

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the folder that the model was loaded from to the Hugging Face hub.

        Its model card is the folder's ``README.md``; stage 15 writes one with scores.

        Args:
            repo_id: ``<user or organisation>/<name>``; created if it is missing.
            private: make a new repository private.

        Returns:
            The URL of the commit.

        Raises:
            UserError: the model was not loaded from a folder, there is no token, or
                the hub refuses or cannot be reached.
        """
        from speechllm.pretrained.push import push_folder

        if self.folder is None:
            raise UserError("push_to_hub uploads a model of from_pretrained only")
        return push_folder(self.folder, repo_id, private)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return device_of(self.model)

    @property
    def max_samples(self) -> int | None:
        """Length of the longest utterance in samples at 16 kHz; None: no limit."""
        return getattr(self.model.encoder, "max_samples", None)

    def transcribe(
        self,
        audio: Sequence[str | Path | np.ndarray],
        task: str = "asr",
        language: str | None = None,
        target_language: str | None = None,
        batch_size: int | None = None,
        unguarded: bool = True,
        **generation: Any,
    ) -> list[Result]:
        """Turn recordings into text.

        Args:
            audio: paths of audio files, or float arrays (samples,) at 16 kHz.
            task: ``"asr"`` for a transcript, ``"st"`` for a translation,
                ``"asr_st"`` for both.
            language: of the speech; the first one of the model's prompts if None.
            target_language: of the translation; needed unless ``"asr"``.
            batch_size: utterances decoded concurrently; it does not change their text.
                None: that of the model's settings, else 8.
            unguarded: see :meth:`decode`.
            **generation: fields of ``SearchOptions`` that override the model's
                settings: beam_size, ctc_weight, …

                ``guard`` checks outputs against the audio
                (:mod:`speechllm.inference.guard`); it is on where the model folder has
                a ``guard.yaml``, unless False. Its findings are in ``flags`` of a
                result, the first text in ``unguarded``.

                ``word_times`` gives ``words`` of a transcript with start, end and
                confidence, which is calibrated where the model folder has a
                ``confidence.json``.

                ``hotwords`` is a list of words and phrases to expect, such as names.
                The search prefers them with ``hotword_bonus``; they are in the prompt,
                too, of a model that was trained with lists.

        Returns:
            One result for each, in order.

        Raises:
            UserError: no audio, an unreadable file, an unknown task, language or
                option.
        """
        if isinstance(audio, (str, Path)) or not len(audio):
            raise UserError("transcribe takes a list of paths or arrays, not empty")
        batch_size = self.choose_batch_size(batch_size, "transcribe")
        tasks = [self.request(task, language, target_language)] * len(audio)
        options = self.options(generation)
        waves = [check_waveform(a) for a in audio]
        return self.decode_all(waves, tasks, options, batch_size, unguarded)

    def request(
        self, task: str, language: str | None, target_language: str | None
    ) -> Task:
        """Return the task that is requested.

        Raises:
            UserError: the model has no prompt for the task or a language.
        """
        return requested_task(self.prompts, task, language, target_language)

    def set_thresholds(self, thresholds: Thresholds | None) -> None:
        """Replace the guard's thresholds; None turns the guard off."""
        self.guard = None
        if thresholds is not None and self.llm is not None and self.ctc_tokenizer:
            self.guard = Guard(self.llm, self.codec, thresholds)

    def choose_batch_size(
        self, batch_size: int | None, place: str, default: int = 8
    ) -> int:
        """Return a batch size, or if it is None that of the model's settings.

        Raises:
            UserError: it is not a positive number; names ``place``.
        """
        if batch_size is None:
            return self.batch_size or default
        check_options({"batch_size": batch_size}, DECODING_SCHEMA, place)
        return batch_size

    def options(self, generation: dict[str, Any]) -> SearchOptions:
        """Return the model's search options, overridden by those of ``generation``.

        Raises:
            UserError: an unknown option, or one that this model does not support.
        """
        options = search_options({**self.generation, **generation})
        if isinstance(self.llm, VLLMLanguageModel):
            check_vllm_search(options)
        if options.retry_truncated is None:
            options = replace(options, retry_truncated=LIMITS.isdisjoint(generation))
        for name in ("ctc_weight", "rescore_ctc_weight", "word_times", "guard"):
            if getattr(options, name) and self.ctc_tokenizer is None:
                raise UserError(f"{name} needs {self.missing_ctc()}")
        if options.first_pass_beam_size and self.load_speech_decoder is None:
            logging.warning(
                "first_pass_beam_size has no effect: this model's encoder was not "
                "pretrained with a decoder, as Whisper's was"
            )
            options = replace(
                options,
                first_pass_beam_size=0,
                rescore_decoder_weight=None,
                rescore_translation_weight=None,
            )
        if options.first_pass_beam_size and options.rescore_decoder_weight is None:
            if options.rescore_ctc_weight:  # its own weight would be replaced
                raise UserError(
                    "rescore_ctc_weight: with a first pass give "
                    "rescore_decoder_weight, too, or neither for the weights of stage "
                    "11"
                )
            weights = self.score_weights
            options = replace(
                options,
                rescore_decoder_weight=weights.decoder,
                rescore_ctc_weight=weights.ctc if self.ctc_tokenizer else 0.0,
            )
        if options.first_pass_beam_size and options.rescore_translation_weight is None:
            weight = self.score_weights.translation
            options = replace(options, rescore_translation_weight=weight)
        if options.first_pass_beam_size and self.llm is None:
            raise UserError("first_pass_beam_size needs an LLM")
        if options.hotwords and self.llm is None:
            raise UserError("hotwords need an LLM")
        if options.guard and self.guard is None:
            raise UserError(
                "guard: this model has no thresholds; make them with python -m "
                "speechllm.bin.guard_thresholds"
            )
        if self.llm is None and (options.beam_size > 1 or options.ctc_weight):
            raise UserError(
                "a CTC model without an LLM has greedy decoding only: beam_size 1, "
                "ctc_weight 0"
            )
        return options

    def missing_ctc(self) -> str:
        """Return what a model without usable CTC labels lacks."""
        if self.model.ctc_trained and has_pieces(self.model.token_list):
            return "bpe.model in the model folder, since the CTC labels are BPE pieces"
        return "a trained CTC branch"

    def decode_all(
        self,
        waves: Sequence[np.ndarray],
        tasks: Sequence[Task],
        options: SearchOptions,
        batch_size: int,
        unguarded: bool = True,
    ) -> list[Result]:
        """Decode any number of utterances, a few batches of similar length at a time.

        The arguments are those of :meth:`decode`.

        Returns:
            One result for each, in order.
        """
        results: list[Any] = [None] * len(waves)
        for queue in batches_by_length([len(w) for w in waves], batch_size * QUEUE):
            found = self.decode(
                [waves[i] for i in queue],
                [tasks[i] for i in queue],
                options,
                batch_size,
                unguarded=unguarded,
            )
            for index, result in zip(queue, found):
                results[index] = result
        return results

    @torch.inference_mode()
    def decode(
        self,
        waves: Sequence[np.ndarray],
        tasks: Sequence[Task],
        options: SearchOptions,
        batch_size: int | None = None,
        on_finished: Callable[[int], object] | None = None,
        unguarded: bool = True,
    ) -> list[Result]:
        """Decode utterances: encode, search, apply the guard, make results.

        All are encoded, in groups of similar length, and wait in a queue for the LLM:
        when one is finished, the next takes its place.

        Args:
            waves: float arrays (samples,) at 16 kHz.
            tasks: task of each.
            options: of the search.
            batch_size: utterances that the LLM decodes concurrently; all if None.
            on_finished: called with the index of each utterance whose search is
                finished.
            unguarded: False: do not search where the guard withholds every text, such
                as in noise, which takes long. ``unguarded`` of these results is None.
        """
        batch = self.encode(waves, tasks, options)
        batch.batch_size = batch_size
        guard = None if unguarded or options.guard is False else self.guard

        def search(part: EncodedBatch, done: Callable[[int], object] | None):
            nbests = self.search(part, options, done)
            return list(zip(nbests, self.apply_guard(part, nbests, options)))

        found = search_if_kept(guard, batch, search, on_finished)
        results = []
        for row, (nbest, decision) in enumerate(found):
            result = make_result(self.codec, batch, row, decision.nbest)
            if options.word_times:
                best, rate = decision.nbest[0], self.model.encoder.num_frames_per_second
                add_words(result, self.codec, batch, row, best, rate, self.calibration)
            add_decision(result, self.codec, batch, row, nbest, decision)
            results.append(result)
        return results

    def encode(
        self,
        waves: Sequence[np.ndarray],
        tasks: Sequence[Task],
        options: SearchOptions | None = None,
    ) -> EncodedBatch:
        """Encode utterances; the arguments are those of :meth:`decode`.

        Without options there are no hotwords and no first pass. It is for ``asr`` and
        ``asr_st`` only: an LLM that was trained to translate CTC transcripts translates
        those of the first pass no better.
        """
        first_pass = None
        transcribed = any(task.name in TRANSCRIBED for task in tasks)
        if options is not None and options.first_pass_beam_size and transcribed:
            decoder, known = self.speech_decoder, self.first_passes
            first_pass = first_passes(decoder, waves, tasks, options, known)
        batch = encode_batch(
            self.model, self.prompts, waves, tasks, first_pass, options
        )
        if options is not None and options.first_pass_beam_size:
            guard = self.guard if options.guard is not False else None
            needed = guard and guard.thresholds.language_probability is not None
            batch.language_probabilities = language_probabilities_of(
                batch, self.speech_decoder, self.first_passes, bool(needed)
            )
        return batch

    @functools.cached_property
    def speech_decoder(self) -> SpeechDecoder:
        """The pretrained speech model with its own decoder, for the first pass."""
        assert self.load_speech_decoder is not None  # options() has checked
        return self.load_speech_decoder()

    def load_first_pass(self, generation: dict[str, Any]) -> None:
        """Load the model of the first pass now, if the search needs it.

        Raises:
            UserError: it is damaged, or as :meth:`options`.
        """
        if self.options(generation).first_pass_beam_size:
            _ = self.speech_decoder

    @torch.inference_mode()
    def search(
        self,
        batch: EncodedBatch,
        options: SearchOptions,
        on_finished: Callable[[int], object] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the n-best hypotheses of each utterance, best first."""
        if self.llm is None:
            return ctc_greedy_search(batch)
        return nbest_search(
            self.llm, self.codec, batch, options, on_finished=on_finished
        )

    def apply_guard(
        self,
        batch: EncodedBatch,
        nbests: Sequence[list[Hypothesis]],
        options: SearchOptions,
    ) -> list[GuardDecision]:
        """Return the guard's decisions; without a guard the hypotheses are kept."""
        if self.guard is None or options.guard is False:
            return [GuardDecision(nbest) for nbest in nbests]
        return self.guard.check(batch, nbests, options)
