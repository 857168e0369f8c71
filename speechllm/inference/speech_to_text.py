"""The public API: a trained model that turns speech into text.

from speechllm import SpeechToText

model = SpeechToText.from_pretrained("exp/speechllm_train/model")
for result in model.transcribe(["a.wav", "b.flac"], language="en"):
    print(result.text)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechllm.audio.io import SAMPLING_RATE, check_waveform
from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.confidence import (
    Calibration,
    read_calibration,
    tokens_of_words,
    uncalibrated,
    word_features,
)
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.encoded_batch import Batch, content_key
from speechllm.decoding.forced_alignment import (
    Span,
    align_texts,
    align_words,
    loud_frames,
    split_words,
    word_times,
)
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions, search_options
from speechllm.decoding.rescoring import rescore
from speechllm.decoding.result import Result, Word
from speechllm.inference.backends import choose_engine
from speechllm.inference.guard import Guard, Verdict
from speechllm.inference.guard_thresholds import Thresholds, read_thresholds
from speechllm.inference.loading import (
    check_device,
    check_origin,
    find_model,
    merge_adapters,
)
from speechllm.models.config import read_config
from speechllm.models.llm import resolve_dtype
from speechllm.models.speech_llm import SpeechLLM, build_speech_llm
from speechllm.pretrained.checkpoint import load_tensors
from speechllm.text.ctc_labels import BLANK, END, CTCTokenizer, label_runs, read_labels
from speechllm.text.joint_target import find_separator, parse_answer
from speechllm.text.normalization import ctc_text
from speechllm.text.prompts import Prompts, answer_tokens, encode, read_prompts
from speechllm.utils.batching import batches_by_length, groups_of_like_length
from speechllm.utils.errors import UserError

QUEUE = 8  # batches that are encoded at once and wait for the LLM
# Of a padded batch for the encoder, on a CPU or elsewhere: seconds, and the share that
# may be padding. A CPU is busy with the frames of two seconds already.
ENCODER_BATCH = {True: (30, 0.02), False: (320, 0.1)}


UNALIGNED = "unaligned"  # flag of a text that its audio is too short for


class SpeechToText:
    """Speech recognition and translation with a trained model.

    Build one with :meth:`from_pretrained`.
    """

    def __init__(
        self,
        model: SpeechLLM,
        prompts: Prompts,
        generation: dict | None = None,
        thresholds: Thresholds | None = None,
        calibration: Calibration | None = None,
    ):
        """Wrap a model that is built already.

        Args:
            prompts: what it was trained with.
            generation: its defaults for fields of ``SearchOptions``.
            thresholds: of the guard; without them there is none.
            calibration: of words' confidence; without it that is CTC's probability.
        """
        self.model = model.eval()
        self.prompts = prompts
        self.generation = dict(generation or {})
        self.ctc_tokenizer = None
        if model.ctc is not None and "▁" not in "".join(model.token_list):
            self.ctc_tokenizer = CTCTokenizer(model.token_list)
        self.calibration = calibration
        self.guard = None
        if thresholds is not None and self.ctc_tokenizer and model.llm is not None:
            self.guard = Guard(self, thresholds)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        engine: str = "auto",
    ) -> SpeechToText:
        """Load a model.

        Args:
            path: a folder that stage 11 wrote, a training's folder that holds one as
                ``model``, a folder in Nue-ASR's released format, or a hub id of one.
            device: ``cpu``, ``cuda``, …
            dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``. In float32
                the text of an utterance does not depend on its batch.
            engine: how products are computed: ``auto`` is the fastest that is known
                for the device; all are in :data:`speechllm.inference.backends.ENGINES`.

        Raises:
            UserError: no such model, or it stands on other pretrained weights than
                the ones found here.
        """
        folder = find_model(path)
        check_device(device)
        if not (folder / "config.yaml").exists():
            from speechllm.inference.loading import load_nue_asr

            loaded = load_nue_asr(folder, dtype)
            loaded.model.to(device=device)
            choose_engine(loaded.model, engine)
            return loaded
        config = read_config(folder / "config.yaml")
        check_origin(folder, config)
        if config.get("llm"):
            own = {"dtype": dtype, "dequantize": True}
            config["llm_conf"] = {**config["llm_conf"], **own}
        config["encoder_conf"] = {**config["encoder_conf"], "specaug": None}
        labels = read_labels(folder / "tokens.txt")
        try:
            model = build_speech_llm({**config, "token_list": labels})
            model.load_state_dict(load_tensors(folder))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder}: the model cannot be built: {error}") from error
        if model.llm is not None:
            merge_adapters(model.llm)
        prompts = read_prompts(folder / "prompts.yaml")
        model.to(device=device, dtype=resolve_dtype(dtype))
        choose_engine(model, engine)
        return cls(
            model,
            prompts,
            thresholds=read_thresholds(folder),
            calibration=read_calibration(folder),
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def transcribe(
        self,
        audio: Sequence[str | Path | np.ndarray],
        task: str = "asr",
        language: str | None = None,
        target_language: str | None = None,
        batch_size: int = 8,
        **generation,
    ) -> list[Result]:
        """Turn recordings into text.

        Args:
            audio: paths of audio files, or float arrays (samples,) at 16 kHz.
            task: ``"asr"`` for a transcript, ``"st"`` for a translation,
                ``"asr_st"`` for both.
            language: what is spoken; the first one of the model's prompts if None.
            target_language: what to translate into; needed unless ``"asr"``.
            batch_size: utterances decoded at once; it does not change their text.
            **generation: fields of ``SearchOptions``: beam_size, ctc_weight, …

                ``guard`` checks answers against the audio (:mod:`speechllm.inference.guard`);
                it is on where the model's folder has a ``guard.yaml``, unless False.
                What it found stands in ``flags`` of a result, the first text in
                ``unguarded``.

                ``word_times`` gives ``words`` of a transcript, with start, end and
                confidence, which is calibrated where the folder has a
                ``confidence.json``.

        Returns:
            One result for each, in order.

        Raises:
            UserError: no audio, an unreadable file, an unknown task, language or
                option.
        """
        if isinstance(audio, (str, Path)) or not len(audio):
            raise UserError("transcribe takes a list of paths or arrays, not empty")
        asks = [self.request(task, language, target_language)] * len(audio)
        options = self.options(generation)
        waves = [check_waveform(a) for a in audio]
        return self.decode_all(waves, asks, options, batch_size)

    def decode_all(
        self,
        waves: Sequence[np.ndarray],
        asks: Sequence[tuple[str, str, str]],
        options: SearchOptions,
        batch_size: int,
    ) -> list[Result]:
        """:meth:`decode` any number of utterances, some batches of like length at once.

        Returns:
            One result for each, in order.
        """
        results: list[Result | None] = [None] * len(waves)
        for queue in batches_by_length([len(w) for w in waves], batch_size * QUEUE):
            found = self.decode(
                [waves[i] for i in queue], [asks[i] for i in queue], options, batch_size
            )
            for index, result in zip(queue, found):
                results[index] = result
        return results

    def request(
        self, task: str, language: str | None, target_language: str | None
    ) -> tuple[str, str, str]:
        """What is asked for, checked: task, source language, target language.

        Raises:
            UserError: the model's prompts know no such task or language.
        """
        source = language or next(iter(self.prompts.languages))
        target = source if task == "asr" else target_language
        self.prompts.text(task, source, target or source)
        if target is None:
            raise UserError(f"task {task!r} needs a target_language")
        return task, source, target

    def options(self, generation: dict) -> SearchOptions:
        """The model's search options, with those of ``generation`` in place.

        Raises:
            UserError: an unknown option, or one that this model cannot do.
        """
        options = search_options({**self.generation, **generation})
        if options.ctc_weight > 0 and self.ctc_tokenizer is None:
            raise UserError("ctc_weight needs a CTC branch over characters")
        for name in ("rescore_ctc_weight", "word_times"):
            if getattr(options, name) and self.ctc_tokenizer is None:
                raise UserError(f"{name} needs a CTC branch over characters")
        if options.guard and self.guard is None:
            raise UserError(
                "guard: this model has no thresholds; make them with python -m "
                "speechllm.bin.guard_thresholds (it needs a CTC branch over characters)"
            )
        if self.model.llm is None and (options.beam_size > 1 or options.ctc_weight):
            raise UserError(
                "a CTC model without an LLM has its best path alone: beam_size 1, "
                "ctc_weight 0"
            )
        return options

    @torch.inference_mode()
    def decode(
        self,
        waves: Sequence[np.ndarray],
        asks: Sequence[tuple[str, str, str]],
        options: SearchOptions,
        batch_size: int | None = None,
    ) -> list[Result]:
        """Decode utterances.

        They are encoded in groups of like length, and then wait in a queue for the
        LLM: where one is finished, the next takes its place.

        Args:
            waves: float arrays (samples,) at 16 kHz.
            asks: (task, source language, target language) of each.
            batch_size: utterances that the LLM answers at once; all of them if None.
        """
        if self.model.llm is None:
            return self.best_paths(*self.padded(waves), asks, options)
        batch = self.encode(waves, asks)
        batch.at_once = batch_size
        nbests = self.search(batch, options)
        results = []
        for row, verdict in enumerate(self.judge(batch, nbests, options)):
            result = self.result(batch, row, verdict.nbest, options)
            if options.word_times:
                self.add_words(result, batch, row, verdict.nbest[0])
            if verdict.flags:
                before = self.result(batch, row, nbests[row], options)
                if before.text != result.text:
                    result.unguarded = before.text
                if not verdict.nbest[0].tokens:
                    result.flags.clear()  # what is empty is not malformed
                result.flags += verdict.flags
            results.append(result)
        return results

    def padded(self, waves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Waveforms as (batch, samples) on the model's device, and their lengths."""
        speech = pad_sequence(
            [torch.from_numpy(np.asarray(w, dtype=np.float32)) for w in waves],
            batch_first=True,
        )
        lengths = torch.tensor([len(w) for w in waves], device=self.device)
        return speech.to(self.device), lengths

    @torch.inference_mode()
    def encode(
        self, waves: Sequence[np.ndarray], asks: Sequence[tuple[str, str, str]]
    ) -> Batch:
        """Encode utterances; the arguments are those of :meth:`decode`."""
        tokenizer = self.model.llm.tokenizer
        pairs = [self.prompts.tokens(*ask, tokenizer) for ask in asks]
        lengths = [len(wave) for wave in waves]
        seconds, padding = ENCODER_BATCH[self.device.type == "cpu"]
        groups = groups_of_like_length(lengths, seconds * SAMPLING_RATE, padding)
        encoded: list = [None] * len(waves)  # (prompt, logits, what CTC heard)
        for group in groups:
            try:
                prompts, logits, frames = self.model.prompt(
                    *self.padded([waves[i] for i in group]),
                    [pairs[i][0] for i in group],
                    [pairs[i][1] for i in group],
                )
            except ValueError as error:
                raise UserError(str(error)) from error
            parts = heard = [None] * len(group)
            if logits is not None:
                heard = self.model.ctc_transcripts(logits, frames)
                parts = [row[:count] for row, count in zip(logits, frames)]
            for index, *found in zip(group, prompts, parts, frames, heard):
                encoded[index] = found
        prompts, parts, frames, heard = zip(*encoded)
        return Batch(
            asks,
            waves,
            prompts,
            None if parts[0] is None else pad_sequence(parts, batch_first=True),
            torch.stack(frames),
            heard,
            [content_key(wave, ask) for wave, ask in zip(waves, asks)],
        )

    def search(
        self,
        batch: Batch,
        options: SearchOptions,
        most_tokens: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """The n-best answers to each utterance, best first.

        Args:
            most_tokens: of each answer, beside those that the options allow.
        """
        scorer = spellers = hints = None
        if options.ctc_weight > 0:
            scorer = CTCPrefixScorer(batch.logits, batch.frames)
            spellers = [self.speller(*ask) for ask in batch.asks]
            hints = [
                self.hints(text, ask[0]) if speller else ()
                for text, ask, speller in zip(batch.heard, batch.asks, spellers)
            ]
        limits = self.limits(batch, options)
        if most_tokens is not None:
            limits = [min(pair) for pair in zip(limits, most_tokens)]
        if options.rescore_ctc_weight > 0:
            wide = replace(options, nbest=max(options.nbest, options.beam_size))
        else:
            wide = options
        nbests = beam_search(
            self.model.llm,
            batch.prompts,
            limits,
            wide,
            scorer,
            spellers,
            hints,
            batch.at_once,
            batch.keys,
        )
        if options.rescore_ctc_weight > 0:
            nbests = self.rescored(batch, nbests, options)
        return nbests

    def limits(self, batch: Batch, options: SearchOptions) -> list[int]:
        """The most tokens of each answer."""
        return [
            options.max_tokens(seconds, ask[0])
            for seconds, ask in zip(batch.seconds, batch.asks)
        ]

    def rescored(
        self,
        batch: Batch,
        nbests: Sequence[list[Hypothesis]],
        options: SearchOptions,
    ) -> list[list[Hypothesis]]:
        """The n-best in the ranks that CTC gives them; translations as they are."""
        ranked = []
        for row, nbest in enumerate(nbests):
            texts = [self.spoken_labels(h.tokens, batch.asks[row]) for h in nbest]
            if None not in texts:
                weight = options.rescore_ctc_weight
                log_probs = batch.log_probs(row)
                nbest = rescore(nbest, log_probs, texts, weight, options.penalty)
            ranked.append(nbest[: options.nbest])
        return ranked

    def judge(
        self,
        batch: Batch,
        nbests: Sequence[list[Hypothesis]],
        options: SearchOptions,
    ) -> list[Verdict]:
        """What the guard makes of the answers; without one they stay as they are."""
        if self.guard is None or options.guard is False:
            return [Verdict(nbest) for nbest in nbests]
        return self.guard.check(batch, nbests, options)

    def best_paths(
        self,
        speech: Tensor,
        lengths: Tensor,
        asks: Sequence[tuple[str, str, str]],
        options: SearchOptions,
    ) -> list[Result]:
        """What CTC hears, of a model without an LLM.

        Args:
            speech: (batch, samples), padded; lengths (batch,).
        """
        if unknown := {task for task, _, _ in asks} - {"asr"}:
            raise UserError(f"task {min(unknown)!r}: a CTC model only transcribes")
        try:
            _, frames, logits = self.model.encode(speech, lengths)
        except ValueError as error:
            raise UserError(str(error)) from error
        log_probs = logits.float().log_softmax(2)
        scores, labels = log_probs.max(2)  # (batch, frames)
        texts = self.model.ctc_transcripts(logits, frames)
        results = []
        for text, path, score, count in zip(texts, labels, scores, frames.tolist()):
            runs = label_runs(path[:count].tolist())
            total = score[:count].sum().item()
            results.append(
                Result(
                    text=text,
                    tokens=[self.model.token_list[k] for k, _, _ in runs if k != BLANK],
                    score=total,
                    ctc_text=text,
                    nbest=[(text, total)],
                )
            )
        if options.word_times:
            rate = self.model.encoder.num_frames_per_second
            for row, (result, (_, source, _)) in enumerate(zip(results, asks)):
                heard = log_probs[row, : frames[row]].cpu()
                result.words = align_words(
                    result.text, source, heard, self.ctc_tokenizer, 1 / rate
                )
        return results

    def speller(self, task: str, source: str, target: str):
        """A function from LLM tokens to the CTC labels of their text.

        A letter or digit that CTC has no label for becomes ``<unk>``, which CTC never
        hears: the LLM cannot write past the audio in signs that CTC does not know. Of
        an ``asr_st`` answer the transcript is spelt, and ``END`` behind it; of a
        translation there is nothing to spell: None.
        """
        tokenizer = self.model.llm.tokenizer

        def spell(tokens: list[int]) -> list[int]:
            return self.ctc_tokenizer(ctc_text(tokenizer.decode(tokens), source))

        def spell_transcript(tokens: list[int]) -> list[int]:
            text = tokenizer.decode(tokens)
            transcript, over, _ = text.partition(separator.text)
            heard = ctc_text(separator.unescape(transcript), source)
            return self.ctc_tokenizer(heard) + [END] * bool(over)

        if task == "asr_st":
            separator = find_separator(tokenizer)
            return spell_transcript
        return spell if source == target else None

    def spoken_labels(
        self, tokens: Sequence[int], ask: tuple[str, str, str]
    ) -> list[int] | None:
        """An answer's transcript in CTC labels; None of a translation."""
        spell = self.speller(*ask)
        return spell and [k for k in spell(list(tokens)) if k != END]

    def decoded(self, tokens: Sequence[int]) -> str:
        """The text of LLM tokens."""
        return self.model.llm.tokenizer.decode(tokens, skip_special_tokens=True)

    def encoded(self, text: str) -> list[int]:
        """The LLM tokens of a text, as they stand in an answer."""
        return answer_tokens(self.model.llm.tokenizer, text)[:-1] if text else []

    def hints(self, heard: str, task: str) -> list[int]:
        """LLM tokens of what CTC heard, as it stands and with a capital.

        Those of the separator too, where a translation comes behind it.
        """
        tokenizer = self.model.llm.tokenizer
        spellings = {heard, heard[:1].upper() + heard[1:]}
        tokens = {t for text in spellings for t in encode(tokenizer, " " + text)}
        if task == "asr_st":
            tokens.update(find_separator(tokenizer).tokens)
        return sorted(tokens)

    def result(
        self,
        batch: Batch,
        row: int,
        nbest: Sequence[Hypothesis],
        options: SearchOptions,
    ) -> Result:
        """Spell out the hypotheses of one utterance, best first.

        The best answer of ``asr_st`` is taken apart; one of as many tokens as there
        could be was cut off.
        """
        tokenizer, best = self.model.llm.tokenizer, nbest[0]
        texts = [self.decoded(h.tokens) for h in nbest]
        result = Result(
            text=texts[0].strip(),
            tokens=tokenizer.convert_ids_to_tokens(best.tokens),
            score=best.score,
            ctc_text=batch.heard[row],
            nbest=[(text.strip(), h.score) for text, h in zip(texts, nbest)],
        )
        if batch.asks[row][0] == "asr_st":
            answer = parse_answer(texts[0], find_separator(tokenizer))
            result.transcript, result.text = answer.transcript, answer.translation
            limit = self.limits(batch, options)[row]
            if not answer.whole or len(best.tokens) >= limit:
                result.flags.append("malformed")
        return result

    def add_words(
        self, result: Result, batch: Batch, row: int, answer: Hypothesis
    ) -> None:
        """Put the words into a result, with times and confidence.

        A translation has none, since its words are nowhere in the audio; of
        ``asr_st`` they are the transcript's.
        """
        words, spans, features = self.evidence(batch, row, answer)
        if words is None:
            return
        rate = self.model.encoder.num_frames_per_second
        frames = int(batch.frames[row])
        loud = loud_frames(batch.waves[row], frames, SAMPLING_RATE / rate)
        times = word_times(spans, frames, 1 / rate, loud)
        probability = uncalibrated
        if self.calibration is not None:
            probability = self.calibration.probability
        result.words = [
            Word(word, start, end, probability(values))
            for word, (start, end), values in zip(words, times, features)
        ]
        if words:
            total = sum(word.confidence for word in result.words)
            result.confidence = total / len(words)
        if not all(span.heard for span in spans):
            result.flags.append(UNALIGNED)

    @torch.inference_mode()
    def evidence(
        self, batch: Batch, row: int, answer: Hypothesis
    ) -> tuple[list[str] | None, list[Span], list[tuple[float, ...]]]:
        """The words of an answer, their frames, and what tells how sure they are.

        Returns:
            Words, spans and ``FEATURES`` of each word; None of a translation.
        """
        task, source, target = batch.asks[row]
        if task != "asr_st" and source != target:
            return None, [], []
        llm = self.model.llm
        texts = [self.decoded(answer.tokens[:n]) for n in range(len(answer.tokens) + 1)]
        text = texts[-1]
        if task == "asr_st":
            text = text.partition(find_separator(llm.tokenizer).text)[0]
        words = split_words(text, source)
        log_probs = batch.log_probs(row).cpu()  # many small steps
        spans = align_texts(words, source, log_probs, self.ctc_tokenizer)
        (scores,) = llm.answer_log_probs(
            [batch.prompts[row]], [[*answer.tokens, llm.eos_id]]
        )
        scores = scores.tolist()
        pieces = [after[len(before) :] for before, after in pairwise(texts)]
        features = [
            word_features(span.log_probs, [scores[i] for i in tokens])
            for span, tokens in zip(spans, tokens_of_words(pieces, words))
        ]
        return words, spans, features
