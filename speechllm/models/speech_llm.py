"""The model's whole story: build, encode, splice, losses, and what a checkpoint holds.

    waveform → encoder → (CTC) → bridge → [prompt, speech, prompt, answer] → LLM

An answer is a transcript or a translation, whichever the prompt asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from espnet2.asr.ctc import CTC
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from speechllm.models.bridge import BRIDGES
from speechllm.models.encoder import SpeechEncoder
from speechllm.models.encoders import ENCODERS
from speechllm.models.llm import LanguageModel, resolve_dtype
from speechllm.text.ctc_labels import label_runs, label_text


class SpeechLLM(AbsESPnetModel):
    """A speech encoder, a bridge and a decoder-only LLM, trained as one.

    Args:
        encoder: waveform to features.
        ctc: ESPnet's CTC over ``token_list`` on the encoder's features, or None.
        bridge: features to LLM embeddings; None while only CTC is trained.
        llm: the decoder; None while only CTC is trained.
        token_list: labels of the CTC branch, ``<blank>`` first.
        ctc_weight: loss = ctc_weight · CTC + (1 − ctc_weight) · LLM, as in ESPnet.
        label_smoothing: share of the target's mass spread over the vocabulary.
        feature_dropout: dropout on the features in training.
        autocast: precision of matrix products in training: ``"float32"``,
            ``"bfloat16"``, or ``"auto"``: bfloat16 where the machine has it in
            hardware. Losses are in float32 always, and decoding does not use it.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        ctc: CTC | None,
        bridge: nn.Module | None,
        llm: LanguageModel | None,
        token_list: Sequence[str] = (),
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.0,
        feature_dropout: float = 0.0,
        autocast: str = "auto",
    ):
        super().__init__()
        if not 0.0 <= ctc_weight <= 1.0:
            raise ValueError(f"ctc_weight {ctc_weight}: from 0 to 1")
        if ctc is None and ctc_weight > 0:
            raise ValueError(f"ctc_weight {ctc_weight} without a CTC vocabulary")
        if llm is None and ctc_weight < 1:
            raise ValueError(f"ctc_weight {ctc_weight} without an LLM: set it to 1.0")
        if bridge is not None and bridge.needs_ctc and ctc is None:
            raise ValueError("this bridge reads CTC, and there is no CTC vocabulary")
        self.encoder = encoder
        self.dropout = nn.Dropout(feature_dropout)
        self.ctc = ctc
        self.bridge = bridge
        self.llm = llm
        self.token_list = list(token_list)
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.autocast_dtype = resolve_dtype(autocast)
        if ctc is not None and ctc_weight == 0:
            ctc.requires_grad_(False)
        if hasattr(bridge, "connect"):
            bridge.connect(self.token_list, llm.tokenizer, llm.embed)
        self.changed = {
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or name.startswith(("ctc.", "bridge."))
        }

    # What a checkpoint holds

    def state_dict(self, *args, **options) -> dict[str, Tensor]:
        """Only what differs from the pretrained models: megabytes."""
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if name in self.changed}

    def load_state_dict(
        self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ):
        """Load a checkpoint; what it holds counts as changed from then on.

        Raises:
            RuntimeError: a tensor is unknown here or of another shape, or (strict)
                one that was changed here is missing; names the first ones.
        """
        own = {name: tensor.shape for name, tensor in super().state_dict().items()}
        unknown = sorted(set(state) - set(own))
        missing = sorted(self.changed - set(state)) if strict else []
        shapes = sorted(k for k in state if k in own and state[k].shape != own[k])
        for names, what in (
            (unknown, "not in this model"),
            (missing, "missing in the checkpoint"),
            (shapes, "of another shape than in the checkpoint"),
        ):
            if names:
                raise RuntimeError(
                    f"{len(names)} tensors are {what}: {', '.join(names[:3])}"
                )
        self.changed.update(state)
        return super().load_state_dict(state, strict=False, assign=assign)

    # From waveform to losses

    def encode(
        self, speech: Tensor, speech_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features (batch, frames, dim), their lengths, CTC logits or None.

        The CTC logits (batch, frames, labels) are of the same frames.
        """
        features, lengths = self.encoder(speech, speech_lengths)
        features = self.dropout(features)
        logits = None if self.ctc is None else self.ctc.ctc_lo(features)
        return features, lengths, logits

    def prompt(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        prefixes: Sequence[Sequence[int]],
        suffixes: Sequence[Sequence[int]],
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """What the LLM reads before it answers.

        Args:
            prefixes, suffixes: token ids around the speech of each utterance.

        Returns:
            One tensor (positions, hidden) for each utterance; the CTC logits (batch,
            frames, labels) or None; the frames (batch,).
        """
        features, frames, logits = self.encode(speech, speech_lengths)
        embeddings, lengths = self.bridge(features, frames, logits)
        around = self.llm.embed_lists([*prefixes, *suffixes])
        before, behind = around[: len(prefixes)], around[len(prefixes) :]
        prompts = [
            torch.cat([prefix, heard[:length].to(self.llm.dtype), suffix])
            for prefix, heard, length, suffix in zip(
                before, embeddings, lengths.tolist(), behind, strict=True
            )
        ]
        return prompts, logits, frames

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor | None = None,
        text_lengths: Tensor | None = None,
        text_ctc: Tensor | None = None,
        text_ctc_lengths: Tensor | None = None,
        prompt_prefix: Tensor | None = None,
        prompt_prefix_lengths: Tensor | None = None,
        prompt_suffix: Tensor | None = None,
        prompt_suffix_lengths: Tensor | None = None,
        **unused,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Losses of a batch, as ESPnet's trainer wants them.

        Args:
            speech: (batch, samples); lengths in samples.
            text: (batch, tokens) the answer in LLM tokens, end of text included.
            text_ctc: (batch, labels) the transcript in CTC labels.
            prompt_prefix, prompt_suffix: (batch, tokens) around the speech.

        Returns:
            loss, statistics, and the batch size as their weight.
        """
        batch = speech.shape[0]
        stats: dict[str, Tensor | None] = {}
        loss_ctc = loss_att = None
        with torch.autocast(
            speech.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype != torch.float32,
        ):
            if self.ctc_weight == 1.0:
                _, frames, logits = self.encode(speech, speech_lengths)
            else:
                prompts, logits, frames = self.prompt(
                    speech,
                    speech_lengths,
                    unpad(prompt_prefix, prompt_prefix_lengths),
                    unpad(prompt_suffix, prompt_suffix_lengths),
                )
                loss_att, answer_stats = self.answer_loss(
                    prompts, unpad(text, text_lengths)
                )
                stats.update(answer_stats)
        if self.ctc_weight > 0:
            labels = torch.cat([t[:n] for t, n in zip(text_ctc, text_ctc_lengths)])
            loss_ctc = self.ctc.loss_fn(
                logits.transpose(0, 1), labels, frames, text_ctc_lengths
            )
        if not self.training and text_ctc is not None and self.ctc is not None:
            truth = unpad(text_ctc, text_ctc_lengths)
            stats["cer_ctc"] = self.ctc_character_error_rate(logits, frames, truth)
        if loss_ctc is None:
            loss = loss_att
        elif loss_att is None:
            loss = loss_ctc
        else:
            loss = self.ctc_weight * loss_ctc + (1 - self.ctc_weight) * loss_att
        for name, value in (("loss_ctc", loss_ctc), ("loss_att", loss_att)):
            stats[name] = None if value is None else value.detach()
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, batch), loss.device)

    def answer_loss(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The LLM's loss on the answers and statistics: acc, and wer on validation.

        Args:
            prompts: (positions, hidden) for each utterance.
            answers: token ids of each, end of text included.
        """
        loss, best = self.llm.answer_loss(prompts, answers, self.label_smoothing)
        targets = torch.tensor([t for a in answers for t in a], device=best.device)
        stats = {"acc": (best == targets).float().mean()}
        if not self.training:
            stats["wer"] = self.teacher_forced_word_error_rate(best, answers)
        return loss, stats

    def teacher_forced_word_error_rate(
        self, best: Tensor, answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Word error rate of the best next tokens, given the true ones before them."""
        import jiwer

        pieces = best.split([len(a) for a in answers])
        decode = self.llm.tokenizer.decode
        hypotheses = [decode(p, skip_special_tokens=True).strip() for p in pieces]
        references = [decode(a, skip_special_tokens=True).strip() for a in answers]
        pairs = [(r, h) for r, h in zip(references, hypotheses) if r]
        if not pairs:
            return best.new_tensor(0.0, dtype=torch.float32)
        rate = jiwer.wer([r for r, _ in pairs], [h for _, h in pairs])
        return torch.tensor(rate, device=best.device)

    def ctc_character_error_rate(
        self, logits: Tensor, frames: Tensor, truth: Sequence[Sequence[int]]
    ) -> Tensor:
        """Character error rate of the CTC branch's best path."""
        import jiwer

        references = [self.spell(ids) for ids in truth]
        hypotheses = self.ctc_transcripts(logits, frames)
        pairs = [(r, h) for r, h in zip(references, hypotheses) if r]
        if not pairs:
            return logits.new_tensor(0.0)
        rate = jiwer.cer([r for r, _ in pairs], [h for _, h in pairs])
        return torch.tensor(rate, device=logits.device)

    def ctc_transcripts(self, logits: Tensor, frames: Tensor) -> list[str]:
        """Best path of the CTC branch as text, for (batch, frames, labels) logits."""
        best = logits.argmax(2).tolist()
        return [
            self.spell([k for k, _, _ in label_runs(row[:length])])
            for row, length in zip(best, frames.tolist())
        ]

    def spell(self, labels: Sequence[int]) -> str:
        """Text of CTC labels; blanks and special labels are silent."""
        text = "".join(label_text(self.token_list[k]) for k in labels)
        return " ".join(text.split())

    def collect_feats(self, **batch: Tensor) -> dict[str, Tensor]:
        """Nothing: the encoder normalises its own input, no statistics are needed."""
        return {}


def unpad(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    """Take a padded batch (batch, tokens) apart into lists of ids."""
    return [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())]


def build_speech_llm(config: Mapping) -> SpeechLLM:
    """Build a model from its configuration.

    Args:
        config: ``encoder``, ``bridge``, ``llm`` (names; the last two may be None),
            ``encoder_conf``, ``bridge_conf``, ``llm_conf``, ``ctc_conf``,
            ``model_conf`` (options of each) and ``token_list`` (the CTC labels, or
            None for a model without CTC).

    Raises:
        ValueError: parts that do not fit each other.
    """
    encoder = choose("encoder", ENCODERS, config)(**config["encoder_conf"])
    token_list = config.get("token_list") or []
    ctc = None
    if token_list:
        ctc = CTC(len(token_list), encoder.output_size, **config.get("ctc_conf") or {})
    llm = bridge = None
    if config.get("llm"):
        llm = LanguageModel(**config["llm_conf"])
        if not config.get("bridge"):
            raise ValueError("an LLM without a bridge cannot hear: name a bridge")
        bridge = choose("bridge", BRIDGES, config)(
            encoder.output_size, llm.hidden_size, **config.get("bridge_conf") or {}
        )
    return SpeechLLM(
        encoder, ctc, bridge, llm, token_list, **config.get("model_conf") or {}
    )


def choose(part: str, choices: Mapping[str, type], config: Mapping) -> type:
    """The class that a configuration names for a part."""
    if config.get(part) not in choices:
        raise ValueError(f"{part} {config.get(part)!r}: one of {', '.join(choices)}")
    return choices[config[part]]
