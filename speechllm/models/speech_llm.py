"""SpeechLLM, the whole model: construction, encoding, prompts, losses, checkpoints.

    waveform → encoder → (CTC) → bridge → [prompt, speech, prompt, target] → LLM

The module reads top to bottom: :func:`build_speech_llm` and the constructor, then
:class:`SpeechLLM` from waveform to losses, then the content of a checkpoint. The
target is a transcript or a translation, depending on the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from speechllm.models.bridge import BRIDGES
from speechllm.models.config import choose
from speechllm.models.ctc import CTC, ctc_options
from speechllm.models.distributed_mean import divisors
from speechllm.models.encoder import SpeechEncoder
from speechllm.models.encoders import ENCODERS
from speechllm.models.llm import LanguageModel
from speechllm.models.precision import resolve_dtype
from speechllm.pretrained.checkpoint import require_finite
from speechllm.pretrained.model_folder import check_files, weight_files
from speechllm.pretrained.resolve import resolve_model
from speechllm.text.ctc_labels import label_runs, label_text

#: Buffer of encoders whose integer ``layer`` is the layer's own output.
LAYER_OUTPUT = "encoder.layer_output"


def build_speech_llm(config: Mapping) -> SpeechLLM:
    """Build a model from its configuration.

    Args:
        config: ``encoder``, ``bridge``, ``llm`` (names; the last two may be None),
            ``encoder_conf``, ``bridge_conf``, ``llm_conf``, ``ctc_conf``,
            ``model_conf`` (options of each) and ``token_list`` (the CTC labels, or
            None for a model without CTC).

    Raises:
        ValueError: an unknown part, or parts that do not fit each other.
        UserError: pretrained weights are missing, damaged or of another model.
    """
    for part in ("encoder", "llm") if config.get("llm") else ("encoder",):
        conf = config.get(f"{part}_conf") or {}
        name = conf.get("model")
        if name is None:
            found = f", only {', '.join(conf)}" if conf else ""
            raise ValueError(f"{part}_conf names no model{found}")
        if isinstance(name, (str, Path)):
            check_files(resolve_model(name))
    encoder = choose("encoder", config.get("encoder"), ENCODERS)(
        **config["encoder_conf"]
    )
    token_list = config.get("token_list") or []
    ctc = None
    if token_list:
        options = ctc_options(config.get("ctc_conf"))
        ctc = CTC(len(token_list), encoder.output_size, **options)
    llm = bridge = None
    if config.get("llm"):
        choose("llm", config["llm"], {"causal_lm": LanguageModel})
        llm = LanguageModel(**config["llm_conf"])
        if not config.get("bridge"):
            raise ValueError("an LLM needs a bridge to the encoder: name a bridge")
        bridge = choose("bridge", config["bridge"], BRIDGES)(
            encoder.output_size, llm.hidden_size, **config.get("bridge_conf") or {}
        )
    for part, module in (("encoder", encoder), ("llm", llm)):
        if module is not None:
            _check_pretrained(module, config[f"{part}_conf"])
    model = SpeechLLM(
        encoder, ctc, bridge, llm, token_list, **config.get("model_conf") or {}
    )
    for part, module in (("encoder", encoder), ("llm", llm)):
        if module is not None and config[f"{part}_conf"].get("random_init"):
            # also what is frozen is in no pretrained model
            model.changed |= {f"{part}.{name}" for name, _ in module.named_parameters()}
    return model


def _check_pretrained(module: nn.Module, conf: Mapping) -> None:
    """Raise UserError for pretrained weights that are not finite."""
    if not isinstance(conf.get("model"), (str, Path)) or conf.get("random_init"):
        return
    folder = resolve_model(conf["model"])
    parameters = [(k, v) for k, v in module.named_parameters() if "lora_" not in k]
    files = weight_files(folder)
    require_finite(parameters, str(files[0] if len(files) == 1 else folder))


class SpeechLLM(nn.Module):
    """Speech encoder, bridge and decoder-only LLM, with an optional CTC branch.

    Args:
        encoder: waveforms to features.
        ctc: CTC branch over ``token_list`` on the encoder's features, or None.
        bridge: features to LLM embeddings; None in CTC-only training.
        llm: the decoder; None in CTC-only training.
        token_list: labels of the CTC branch, ``<blank>`` first.
        ctc_weight: loss = ctc_weight · CTC + (1 − ctc_weight) · LLM, in nats per CTC
            label and per target token (ESPnet: per utterance).
        label_smoothing: probability mass spread over the vocabulary.
        feature_dropout: dropout on the features in training.
        autocast: precision of matrix products in training: ``"float32"``,
            ``"bfloat16"``, or ``"auto"``: bfloat16 if it is the faster one.
            Losses are always in float32, and decoding does not use it.

    Raises:
        ValueError: parts that do not fit each other.
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
            raise ValueError("this bridge reads CTC output: set a CTC vocabulary")
        self.encoder = encoder
        self.dropout = nn.Dropout(feature_dropout)
        self.ctc = ctc
        self.ctc_trained = ctc is not None  # an exported model may say that it is not
        self.bridge = bridge
        self.llm = llm
        self.token_list = list(token_list)
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.autocast_dtype = resolve_dtype(autocast)
        # a trained parameter without a gradient stops distributed training
        if ctc is not None and ctc_weight == 0:
            ctc.requires_grad_(False)
        if ctc_weight == 1:
            for part in (bridge, llm):
                if part is not None:
                    part.requires_grad_(False)
        if hasattr(bridge, "connect"):
            bridge.connect(self.token_list, llm.tokenizer, llm.embed)
        # names of the tensors in a checkpoint: they differ from the pretrained models
        self.changed = {
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or name.startswith(("ctc.", "bridge."))
        }
        self.changed_buffers = changed_buffers(self)
        self.changed |= self.changed_buffers

    # Encoding and prompt assembly

    def encode(
        self, speech: Tensor, speech_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode waveforms.

        Args:
            speech: (batch, samples), 16 kHz, padded at the end.
            speech_lengths: (batch,), in samples.

        Returns:
            features (batch, frames, dim), their lengths (batch,), and the CTC logits
            (batch, frames, labels) of the same frames or None.
        """
        features, lengths = self.encoder(speech, speech_lengths)
        features = self.dropout(features)
        logits = None if self.ctc is None else self.ctc(features)
        return features, lengths, logits

    def prompt(
        self,
        features: Tensor,
        frames: Tensor,
        logits: Tensor | None,
        prefixes: Sequence[Sequence[int]],
        suffixes: Sequence[Sequence[int]],
        transcripts: Sequence[Sequence[int] | None] | None = None,
    ) -> list[Tensor]:
        """Assemble the LLM's input up to the target: prefix, speech, suffix.

        Args:
            features: (batch, frames, dim), their lengths (batch,), and the CTC logits
                (batch, frames, labels), of :meth:`encode`.
            prefixes, suffixes: token ids before and after the speech of each
                utterance.
            transcripts: CTC labels for a bridge that reads them, or None.

        Returns:
            Embeddings (positions, hidden) of each utterance.
        """
        given = {} if transcripts is None else {"transcripts": transcripts}
        embeddings, lengths = self.bridge(features, frames, logits, **given)
        # (batch, positions, hidden), (batch,)
        texts = self.llm.embed_lists([*prefixes, *suffixes])  # each (tokens, hidden)
        before, after = texts[: len(prefixes)], texts[len(prefixes) :]
        return [  # each (positions, hidden)
            torch.cat([prefix, row[:length].to(self.llm.dtype), suffix])
            for prefix, row, length, suffix in zip(
                before, embeddings, lengths.tolist(), after, strict=True
            )
        ]

    # Losses and validation statistics

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
        """Compute the losses of a batch for ESPnet's trainer.

        Args:
            speech: (batch, samples), 16 kHz; lengths in samples.
            text: (batch, tokens) the target in LLM tokens, end of text included.
            text_ctc: (batch, labels) the transcript in CTC labels.
            prompt_prefix, prompt_suffix: (batch, tokens) before and after the speech.

        The losses are averaged over the batch's target tokens (LLM) and CTC labels, of
        all processes of a distributed training after ESPnet's trainer has averaged them
        by the weight. Batches of ``accum_grad`` count equally.

        Returns:
            loss, statistics, and the number of target tokens (without an LLM, of CTC
            labels) as their weight.
        """
        stats: dict[str, Tensor | None] = {}
        sums: dict[str, tuple[Tensor | int, int]] = {}  # and what they are means of
        loss_ctc = loss_att = None
        with torch.autocast(
            speech.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype != torch.float32,
        ):
            features, frames, logits = self.encode(speech, speech_lengths)
            if self.ctc_weight < 1.0:
                prompts = self.prompt(
                    features,
                    frames,
                    logits,
                    unpad(prompt_prefix, prompt_prefix_lengths),
                    unpad(prompt_suffix, prompt_suffix_lengths),
                )
                answers = unpad(text, text_lengths)
                loss_att, stats["acc"], best = self.answer_loss(prompts, answers)
                if not self.training:
                    sums["wer"] = self.teacher_forced_word_errors(best, answers)
                weight = int(text_lengths.sum())
        if self.ctc_weight > 0:
            num_labels = max(1, int(text_ctc_lengths.sum()))
            sum_ctc = self.ctc.loss(logits, frames, text_ctc, text_ctc_lengths)
            sums["loss_ctc"] = (sum_ctc, num_labels)
            if loss_att is None:
                weight = num_labels
        if not self.training and text_ctc is not None and self.ctc is not None:
            truth = unpad(text_ctc, text_ctc_lengths)
            sums["cer_ctc"] = self.ctc_character_errors(logits, frames, truth)
        if sums:
            counts = divisors(weight, [n for _, n in sums.values()], speech.device)
            for (name, (total, _)), count in zip(sums.items(), counts, strict=True):
                stats[name] = torch.as_tensor(total, device=speech.device) / (
                    count or 1
                )
            loss_ctc = stats.get("loss_ctc")
        if loss_ctc is None:
            loss = loss_att
        elif loss_att is None:
            loss = loss_ctc
        else:
            loss = self.ctc_weight * loss_ctc + (1 - self.ctc_weight) * loss_att
        # copies: ESPnet's trainer divides the loss by accum_grad in place
        losses = {"loss_ctc": loss_ctc, "loss_att": loss_att, "loss": loss}
        for name, value in losses.items():
            stats[name] = None if value is None else value.detach().clone()
        # ESPnet's trainer averages vectors
        stats = {k: v if v is None else v.reshape(1) for k, v in stats.items()}
        return loss.reshape(1), stats, torch.tensor([weight], device=loss.device)

    def answer_loss(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the LLM's loss on the targets.

        Args:
            prompts: embeddings (positions, hidden) of each utterance.
            answers: target token ids of each utterance, end of text included.

        Returns:
            loss (a scalar, in nats per target token), the share of right best tokens,
            and the best tokens of all targets, concatenated (target tokens,).
        """
        loss, best = self.llm.answer_loss(prompts, answers, self.label_smoothing)
        loss = loss * (len(answers) / sum(len(answer) for answer in answers))
        targets = torch.tensor([t for a in answers for t in a], device=best.device)
        return loss, (best == targets).float().mean(), best

    def teacher_forced_word_errors(
        self, best: Tensor, answers: Sequence[Sequence[int]]
    ) -> tuple[int, int]:
        """Count word errors of the best next tokens under teacher forcing, and words.

        Args:
            best: (target tokens,), all targets concatenated.
            answers: target token ids of each utterance.
        """
        import jiwer

        pieces = best.split([len(a) for a in answers])
        decode = self.llm.tokenizer.decode
        hypotheses = [decode(p, skip_special_tokens=True).strip() for p in pieces]
        references = [decode(a, skip_special_tokens=True).strip() for a in answers]
        return count_errors(jiwer.process_words, references, hypotheses)

    def ctc_character_errors(
        self, logits: Tensor, frames: Tensor, truth: Sequence[Sequence[int]]
    ) -> tuple[int, int]:
        """Count character errors of the CTC branch's best path, and characters.

        Args:
            logits: (batch, frames, labels)
            frames: (batch,)
            truth: CTC labels of each utterance.
        """
        import jiwer

        references = [self.labels_to_text(ids) for ids in truth]
        hypotheses = self.ctc_transcripts(logits, frames)
        return count_errors(jiwer.process_characters, references, hypotheses)

    def ctc_transcripts(self, logits: Tensor, frames: Tensor) -> list[str]:
        """Return the text of the CTC branch's best path for each utterance.

        Args:
            logits: (batch, frames, labels)
            frames: (batch,)
        """
        best = logits.argmax(2).tolist()
        return [
            self.labels_to_text([k for k, _, _ in label_runs(row[:length])])
            for row, length in zip(best, frames.tolist())
        ]

    def labels_to_text(self, labels: Sequence[int]) -> str:
        """Return the text of CTC labels; blank and special labels have none."""
        text = "".join(label_text(self.token_list[k]) for k in labels)
        return " ".join(text.split())

    def collect_feats(self, **batch: Tensor) -> dict[str, Tensor]:
        """Return nothing: the encoder normalises its input without statistics."""
        return {}

    # Checkpoints

    def state_dict(self, *args, **options) -> dict[str, Tensor]:
        """Return only the tensors that differ from the pretrained models."""
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if name in self.changed}

    def load_state_dict(
        self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ):
        """Load a checkpoint; its tensors are part of every later checkpoint.

        Args:
            strict: require all parameters that differ from the pretrained models.
                Buffers, such as BatchNorm's statistics, are not in checkpoints of
                release 0.2; those of the pretrained models are used then.

        Raises:
            RuntimeError: a tensor is unknown, missing (strict) or of another shape;
                names the first ones.
        """
        if strict and LAYER_OUTPUT in self.changed and LAYER_OUTPUT not in state:
            self.encoder.use_old_layer_output()
        own = {name: tensor.shape for name, tensor in super().state_dict().items()}
        unknown = sorted(set(state) - set(own))
        absent = self.changed - set(state) if strict else set()
        missing = sorted(absent - self.changed_buffers)
        if buffers := sorted(absent & self.changed_buffers - {LAYER_OUTPUT}):
            logging.warning(
                f"{len(buffers)} buffers are not in the checkpoint, which release 0.2 "
                f"or older wrote: {', '.join(buffers[:3])}; those of the pretrained "
                "models are used"
            )
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


def changed_buffers(model: nn.Module) -> set[str]:
    """Return the names of the saved buffers that training changes.

    They are those of modules with trained parameters, as BatchNorm's statistics; a
    module without parameters counts as part of the one around it. All buffers of CTC
    and bridge are included, and the version of an encoder's integer ``layer``.
    """
    saved = set(nn.Module.state_dict(model))
    modules = dict(model.named_modules())
    found = set()
    for name, _ in model.named_buffers():
        owner = name.rpartition(".")[0]
        while owner and not any(True for _ in modules[owner].parameters()):
            owner = owner.rpartition(".")[0]
        trained = any(p.requires_grad for p in modules[owner].parameters())
        always = name.startswith(("ctc.", "bridge.")) or name == LAYER_OUTPUT
        if name in saved and (trained or always):
            found.add(name)
    return found


def count_errors(
    process: Callable, references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[int, int]:
    """Return the number of errors and of units in all references that are not empty.

    Args:
        process: ``process_words`` or ``process_characters`` of jiwer.
    """
    pairs = [(r, h) for r, h in zip(references, hypotheses) if r]
    if not pairs:
        return 0, 0
    found = process([r for r, _ in pairs], [h for _, h in pairs])
    replaced = found.substitutions + found.deletions
    return replaced + found.insertions, replaced + found.hits


def unpad(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    """Split a padded batch (batch, tokens) into lists of ids."""
    return [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())]
