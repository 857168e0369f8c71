"""An encoder–decoder model of speech, whose transcripts are a first pass.

It is the model that the speech encoder was taken from, as it was pretrained or
fine-tuned in stage 8. Whisper's decoder was trained on 680,000 hours. The bridge and
the n-best list take its hypotheses beside those of CTC and LLM, and its score of a text
is combined with theirs. The literature calls this generative error correction with
acoustic evidence (Radhakrishnan et al. 2023, "Whispering LLaMA"; Chen et al. 2023,
"HyPoradise").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechllm.audio.io import SAMPLING_RATE
from speechllm.pretrained.model_folder import (
    NO_CODE,
    load_pretrained,
    read_model_config,
)
from speechllm.text.whisper_tokens import with_first_merge
from speechllm.utils.errors import UserError

FOLDER = "first_pass"  # of the fine-tuned model, in a model folder of stage 10
LONGEST = 30 * SAMPLING_RATE  # samples that Whisper reads
FRAMES_PER_TOKEN = 4  # at least, of 20 ms: more than twice as fast as fast speech
MAX_TOKENS = 200  # of a hypothesis; Whisper has 448 positions
SCORED = 16  # texts that are scored at the same time


def has_speech_decoder(folder: str | Path) -> bool:
    """Return whether a pretrained model has a decoder that can make a first pass.

    A folder of an encoder alone lacks the tokenizer.
    """
    names = ("tokenizer.json", "vocab.json")
    has_tokenizer = any((Path(folder) / name).exists() for name in names)
    return has_tokenizer and read_model_config(folder).model_type == "whisper"


def padded_samples(samples: int) -> int:
    """Return the input length of a fine-tuned model, whole seconds up to 30 s.

    At least one second is silence. The length depends on the utterance alone, so that
    the batch does not affect the text, and few lengths differ, so that there are
    batches.
    """
    return min((samples // SAMPLING_RATE + 2) * SAMPLING_RATE, LONGEST)


class SpeechDecoder:
    """Whisper with its own encoder.

    The trained layers of a SpeechLLM's encoder are not used: the decoder does not know
    them.

    Args:
        folder: of the model.
        dtype: of the weights.
        finetuned: it was fine-tuned on short inputs. As it was pretrained it reads
            speech padded to 30 s, and repeats itself without the padding.

    Raises:
        UserError: a model of another kind, or damaged weights.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        finetuned: bool = False,
    ):
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        if not has_speech_decoder(folder):
            raise UserError(
                f"{folder}: not an encoder–decoder model of speech (Whisper) with its "
                "tokenizer; set first_pass_beam_size to 0"
            )
        try:
            self.model = load_pretrained(
                WhisperForConditionalGeneration, folder, dtype=dtype
            ).eval()
            self.processor = WhisperProcessor.from_pretrained(folder, **NO_CODE)
        except UserError:
            raise
        except Exception as error:  # of any kind, from files of other content
            reason = str(error).partition("\n")[0]
            raise UserError(f"{folder}: Whisper cannot be loaded: {reason}") from error
        self.tokenizer = self.processor.tokenizer
        self.folder = folder
        self.finetuned = finetuned
        shared = self.model.generation_config
        if shared.decoder_start_token_id is None:
            raise UserError(
                f"{folder}: its generation_config.json is not of a Whisper; export or "
                "download the model again"
            )
        self.multilingual = bool(getattr(shared, "is_multilingual", True))

    @functools.cached_property
    def tokenizers(self) -> list[Any]:
        """The tokenizers in whose tokens a text is scored: a model writes one's.

        They are made when needed, which takes a second.
        """
        merged = with_first_merge(self.tokenizer)
        return (
            [self.tokenizer] if merged is self.tokenizer else [self.tokenizer, merged]
        )

    def to(self, device: str | torch.device) -> SpeechDecoder:
        """Move the weights to a device."""
        self.model.to(device=device)
        return self

    def prefix(self, language: str, translate: bool = False) -> list[int]:
        """Return the tokens that a transcript in a language begins with.

        Args:
            language: of the speech.
            translate: those of a translation into English; the model is multilingual.

        Raises:
            UserError: the model was not trained on the language.
        """
        names = ["<|startoftranscript|>"]
        if self.multilingual:
            names += [
                f"<|{language}|>",
                "<|translate|>" if translate else "<|transcribe|>",
            ]
        names.append("<|notimestamps|>")
        ids = [self.tokenizer.convert_tokens_to_ids(name) for name in names]
        if None in ids or self.tokenizer.unk_token_id in ids:
            raise UserError(
                f"{self.folder}: its decoder was not trained on language {language!r}; "
                "set first_pass_beam_size to 0"
            )
        return ids

    def input_samples(self, wave: np.ndarray) -> int:
        """Return the length that an utterance (samples,) is padded to."""
        return padded_samples(len(wave)) if self.finetuned else LONGEST

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> Tensor:
        """Encode utterances of at most 30 s that are padded to the same length.

        Args:
            waves: (samples,) of each at 16 kHz.

        Returns:
            (batch, frames, dim), on the model's device.
        """
        features = self.processor(
            list(waves),
            sampling_rate=SAMPLING_RATE,
            max_length=max(map(self.input_samples, waves)),
            return_tensors="pt",
        ).input_features  # (batch, mels, 2 * frames)
        encoder = self.model.get_encoder()
        positions = encoder.embed_positions.weight
        # transformers' forward() refuses input of under 30 s
        hidden = F.gelu(encoder.conv1(features.to(positions)))
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)  # (batch, frames, dim)
        hidden = hidden + positions[: hidden.shape[1]]
        for layer in encoder.layers:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return encoder.layer_norm(hidden)

    @torch.inference_mode()
    def language_probabilities(self, states: Tensor) -> list[dict[str, float]]:
        """Return the probability of each language that the model knows.

        Args:
            states: (batch, frames, dim) of :meth:`encode`.

        Returns:
            Probabilities by language code for each utterance, of the token after the
            start; none from an English-only model.
        """
        start = self.model.config.decoder_start_token_id
        prompt = torch.full((len(states), 1), start, device=states.device)
        hidden = self.model.get_decoder()(
            input_ids=prompt, encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        logits = self.model.proj_out(hidden[:, -1]).float()  # (batch, vocabulary)
        tokens = getattr(self.model.generation_config, "lang_to_id", None) or {}
        codes = [token.strip("<|>") for token in tokens]
        rows = logits[:, list(tokens.values())].softmax(1).tolist()
        return [dict(zip(codes, row, strict=True)) for row in rows]

    @torch.inference_mode()
    def search(
        self,
        states: Tensor,
        languages: Sequence[str],
        beam_size: int,
        translate: bool = False,
        **options: Any,
    ) -> list[list[str]]:
        """Find the best transcripts by beam search.

        Args:
            states: (batch, frames, dim) of :meth:`encode`.
            languages: of each utterance.
            beam_size: number of hypotheses in the beam and of those returned.
            translate: find translations into English instead.
            **options: further arguments of transformers' ``generate``.

        Returns:
            Distinct transcripts of each utterance, best first.
        """
        from transformers import GenerationMixin
        from transformers.modeling_outputs import BaseModelOutput

        prefixes = [self.prefix(language, translate) for language in languages]
        settings = self.model.generation_config
        # Whisper's own generate() takes no encoder states with several hypotheses.
        sequences = GenerationMixin.generate(
            self.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=torch.ones(states.shape[:2], device=states.device),
            decoder_input_ids=torch.tensor(prefixes, device=states.device),
            num_beams=beam_size,
            num_return_sequences=beam_size,
            max_new_tokens=min(states.shape[1] // FRAMES_PER_TOKEN, MAX_TOKENS),
            max_length=None,
            suppress_tokens=settings.suppress_tokens,
            begin_suppress_tokens=settings.begin_suppress_tokens,
            **options,
        )  # (batch * beam_size, tokens)
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [
            list(dict.fromkeys(texts[row : row + beam_size]))
            for row in range(0, len(texts), beam_size)
        ]

    @torch.inference_mode()
    def log_probs(
        self,
        states: Tensor,
        texts: Sequence[str],
        language: str,
        translate: bool = False,
    ) -> list[float]:
        """Return the log probability of each text given the speech, end included.

        It is that of the more probable tokens, where two tokenizers differ. That of a
        text with more tokens than the decoder has positions is extrapolated
        from its beginning, in proportion to the tokens.

        Args:
            states: (frames, dim) of one utterance.
            texts: transcripts, as Whisper writes them, with case and punctuation.
            language: of the speech.
            translate: the texts are translations into English.
        """
        prefix = self.prefix(language, translate)
        eos = self.tokenizer.eos_token_id
        most = self.model.config.max_target_positions + 1  # the last one is not read
        sequences, ratios, owners = [], [], []
        for owner, text in enumerate(texts):
            spaced = f" {text}" if text else ""
            for tokens in {
                tuple(tokenizer.encode(spaced, add_special_tokens=False))
                for tokenizer in self.tokenizers
            }:
                ids = [*tokens, eos]
                read = ids[: most - len(prefix)]
                ratios.append(len(ids) / len(read))
                sequences.append(torch.tensor([*prefix, *read], device=states.device))
                owners.append(owner)
        scores: list[float] = []
        for begin in range(0, len(sequences), SCORED):
            part = sequences[begin : begin + SCORED]
            padded = pad_sequence(part, batch_first=True, padding_value=eos)
            hidden = self.model.get_decoder()(
                input_ids=padded[:, :-1],
                encoder_hidden_states=states.expand(len(part), -1, -1),
                use_cache=False,
            ).last_hidden_state  # (part, tokens, dim)
            for row, sequence in enumerate(part):
                wanted = slice(len(prefix) - 1, len(sequence) - 1)
                logits = self.model.proj_out(hidden[row, wanted]).float()
                targets = sequence[len(prefix) :, None]
                scores.append(logits.log_softmax(1).gather(1, targets).sum().item())
        best = [-math.inf] * len(texts)
        for owner, score, ratio in zip(owners, scores, ratios, strict=True):
            best[owner] = max(best[owner], score * ratio)
        return best


def written_forms(text: str) -> list[str]:
    """Return a transcript as it is, and as a sentence: capitalised, with a full stop.

    A decoder that was trained on sentences gives plain text a low probability.
    """
    sentence = text[:1].upper() + text[1:]
    if sentence and sentence[-1].isalnum():
        sentence += "."
    return list(dict.fromkeys([text, sentence]))
