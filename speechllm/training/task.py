"""The ESPnet task: the one file that knows ESPnet's arguments and trainer."""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import torch
from espnet2.asr.ctc import CTC
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.class_choices import ClassChoices
from espnet2.train.reporter import Reporter
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str_or_none

from speechllm.export.exported_model import MODEL_KEYS
from speechllm.models.bridge import BRIDGES
from speechllm.models.encoder import ENCODERS
from speechllm.models.llm import LanguageModel, quantization_obstacle
from speechllm.models.speech_llm import SpeechLLM, build_speech_llm
from speechllm.pretrained.checkpoint import is_hub_id, load_tensors
from speechllm.pretrained.model_folder import is_nue_asr
from speechllm.text.prompts import read_prompts
from speechllm.training.preprocessor import CTCTokenizer, ExamplePreprocessor, collate
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

encoder_choices = ClassChoices("encoder", ENCODERS, default="whisper")
bridge_choices = ClassChoices("bridge", BRIDGES, default="convolution", optional=True)
llm_choices = ClassChoices(
    "llm", {"causal_lm": LanguageModel}, default="causal_lm", optional=True
)


def paged_adamw(
    params,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes whose state goes to the CPU when a GPU's memory is full.

    Dettmers et al. 2023, "QLoRA", section 3 (paged optimizers).

    Raises:
        UserError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import PagedAdamW32bit
    except ImportError:
        raise UserError(
            "optim paged_adamw needs bitsandbytes (pip install bitsandbytes); adamw is "
            "the same without paging"
        ) from None
    return PagedAdamW32bit(
        params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay
    )


abs_task.optim_classes["paged_adamw"] = paged_adamw


class SpeechLLMTask(AbsTask):
    """Speech recognition and translation with a pretrained encoder and an LLM."""

    num_optimizers = 1
    class_choices_list = [encoder_choices, bridge_choices, llm_choices]

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        """Add what this task has beside ESPnet's own options."""
        group = parser.add_argument_group(description="Task related")
        group.add_argument(
            "--ctc_token_list",
            type=str_or_none,
            default=None,
            help="Labels of the CTC branch, one a line; none: no CTC branch",
        )
        group.add_argument(
            "--ctc_bpemodel",
            type=str_or_none,
            default=None,
            help="Sentencepiece model of the CTC labels; none: characters",
        )
        group.add_argument(
            "--prompts",
            type=str_or_none,
            default=None,
            help="YAML file with a prompt for each task; needed with an LLM",
        )
        group.add_argument(
            "--lr_scales",
            action=NestedDictAction,
            default={},
            help="Factors on the learning rate by the beginning of a parameter's "
            "name, e.g. '{encoder: 0.1}'",
        )
        group.add_argument(
            "--ctc_conf",
            action=NestedDictAction,
            default=get_default_kwargs(CTC),
            help="Options of ESPnet's CTC",
        )
        group.add_argument(
            "--model_conf",
            action=NestedDictAction,
            default=get_default_kwargs(SpeechLLM),
            help="Options of the model: ctc_weight, label_smoothing, feature_dropout",
        )
        for choices in cls.class_choices_list:
            choices.add_arguments(group)

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool):
        """Pad waveforms with zeros and token ids with -1."""
        return collate

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool):
        """Tokenise with the CTC labels and the LLM's tokenizer."""
        ctc_tokenizer = tokenizer = prompts = None
        if args.ctc_token_list:
            ctc_tokenizer = CTCTokenizer(
                read_token_list(args.ctc_token_list), args.ctc_bpemodel
            )
        if args.llm:
            if args.prompts is None:
                raise UserError("an LLM needs --prompts, a YAML file")
            tokenizer = load_tokenizer(args.llm_conf["model"])
            prompts = read_prompts(args.prompts)
        limit = 480000 if args.encoder == "whisper" else None
        return ExamplePreprocessor(ctc_tokenizer, tokenizer, prompts, limit)

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False):
        """Data that every example has."""
        return ("speech",)

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False):
        """Data that an example may have."""
        return ("text", "text_ctc", "task")

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SpeechLLM:
        """Build the model; the CTC labels go into ``args``, and so to config.yaml.

        So does ``tuning: lora`` where the weights cannot be had in 4 bits.
        """
        if isinstance(args.ctc_token_list, str):
            args.ctc_token_list = read_token_list(args.ctc_token_list)
        quantized = args.llm and args.llm_conf.get("tuning") == "qlora"
        if quantized and (obstacle := quantization_obstacle()):
            logging.warning(f"{obstacle}; LoRA on whole weights instead")
            args.llm_conf = {**args.llm_conf, "tuning": "lora"}
        config = {key: getattr(args, key) for key in MODEL_KEYS}
        try:
            return build_speech_llm({**config, "token_list": args.ctc_token_list})
        except (TypeError, ValueError) as error:
            raise UserError(f"the model cannot be built: {error}") from error

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module):
        """One optimizer over what is trained, with ``lr_scales`` applied."""
        optimizer = choose("optim", abs_task.optim_classes, args)
        groups: dict[float, list] = {}
        used = set()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            prefixes = [p for p in args.lr_scales if name.startswith(p)]
            used.update(prefixes)
            longest = max(prefixes, key=len, default=None)
            scale = 1.0 if longest is None else float(args.lr_scales[longest])
            groups.setdefault(scale, []).append(parameter)
        for prefix in set(args.lr_scales) - used:
            raise UserError(f"lr_scales: nothing that is trained begins with {prefix}")
        if not groups:
            raise UserError("nothing is trained: every part of the model is frozen")
        check_options("optim_conf", optimizer, args.optim_conf)
        if args.scheduler is not None:
            scheduler = choose("scheduler", abs_task.scheduler_classes, args)
            check_options("scheduler_conf", scheduler, args.scheduler_conf)
        conf = dict(args.optim_conf)
        lr = conf.pop("lr", 1e-3)
        return [
            optimizer(
                [{"params": p, "lr": lr * scale} for scale, p in groups.items()],
                lr=lr,
                **conf,
            )
        ]

    @classmethod
    def build_iter_factory(cls, args, distributed_option, mode, kwargs=None):
        """ESPnet's batches; those of training say how far they are."""
        factory = super().build_iter_factory(args, distributed_option, mode, kwargs)
        if mode == "train" and distributed_option.dist_rank in (None, 0):
            return ProgressIterFactory(factory, args.max_epoch)
        return factory

    @classmethod
    def main_worker(cls, args: argparse.Namespace):
        """Train, or collect statistics, with whole checkpoints and our own loading."""
        if args.collect_stats:  # lengths only: nothing to normalise
            args.model_conf = {"extract_feats_in_collect_stats": False}
        else:
            output_dir = Path(args.output_dir)
            if (output_dir / "checkpoint.pth").exists() and args.ctc_token_list:
                labels = read_token_list(args.ctc_token_list)
                require_same_labels(output_dir, labels)
            mend_checkpoint(output_dir, args.best_model_criterion)
        try:
            with whole_checkpoints():
                super().main_worker(args)
        except UserError as error:  # torch puts a worker's traceback before it
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


class ProgressIterFactory(AbsIterFactory):
    """Print ``progress:`` lines to stderr while batches are drawn.

    Args:
        factory: makes the batches of an epoch.
        max_epoch: epochs in all.
        seconds: the least time between two lines.
    """

    def __init__(self, factory: AbsIterFactory, max_epoch: int, seconds: float = 5.0):
        self.factory = factory
        self.max_epoch = max_epoch
        self.seconds = seconds
        self.started: tuple[float, int] | None = None

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> Iterator:
        """Yield the batches of an epoch."""
        batches = self.factory.build_iter(epoch, shuffle)
        try:
            size = len(batches)
        except TypeError:
            size = None
        if self.started is None:
            self.started = (time.monotonic(), epoch)
        return ProgressIterator(batches, size, epoch, self)


class ProgressIterator:
    """The batches of one epoch, with a progress line now and then."""

    def __init__(self, batches, size: int | None, epoch: int, owner):
        self.batches, self.size, self.epoch, self.owner = batches, size, epoch, owner

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("the number of batches is not known")
        return self.size

    def __iter__(self) -> Iterator:
        last = 0.0
        for index, batch in enumerate(self.batches, 1):
            yield batch
            now = time.monotonic()
            if now - last >= self.owner.seconds or index == self.size:
                last = now
                print(self.line(index, now), file=sys.stderr, flush=True)

    def line(self, index: int, now: float) -> str:
        """E.g. ``progress: epoch 2/12, batch 30/86, about 7 min left``."""
        begin, first = self.owner.started
        text = f"progress: epoch {self.epoch}/{self.owner.max_epoch}, batch {index}"
        if self.size is None:
            return text
        done = self.epoch - first + index / self.size
        left = self.owner.max_epoch - first + 1 - done
        minutes = (now - begin) / done * left / 60
        return f"{text}/{self.size}, about {minutes:.0f} min left"


@contextmanager
def whole_checkpoints() -> Iterator[None]:
    """Make ESPnet's trainer write files that are whole or absent, and read ours.

    ``torch.save`` to a path writes beside and renames, so that a kill leaves the last
    checkpoint as it was; ``--init_param`` also takes safetensors, and reads torch
    files without running what is in them.
    """
    save, load = torch.save, abs_task.load_pretrained_model

    @functools.wraps(save)
    def save_whole(obj, f, *args, **options):
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **options)
        with atomic_open(f, "wb") as stream:
            save(obj, stream, *args, **options)

    torch.save, abs_task.load_pretrained_model = save_whole, load_init_param
    try:
        yield
    finally:
        torch.save, abs_task.load_pretrained_model = save, load


def load_init_param(
    init_param: str, model: SpeechLLM, ignore_init_mismatch: bool, map_location: str
) -> None:
    """Start from a trained model: ``--init_param START[:PREFIX]``.

    Args:
        init_param: ``.safetensors`` or ``.pth`` of a SpeechLLM, a folder that holds
            ``model.safetensors``, or a folder or hub id in Nue-ASR's released format
            (``rinna/nue-asr``); with ``:PREFIX`` only the tensors whose names begin
            so (``encoder``, ``ctc``, …). Weights of a layer that has an adapter here
            and had none there go below the adapter.
        ignore_init_mismatch: leave out what does not fit instead of failing.

    Raises:
        UserError: no such model, or tensors that this model has not, or of another
            shape, names the first ones; or a CTC head of other labels.
    """
    path, _, prefix = init_param.partition(":")
    state = read_start(path, map_location)
    if prefix:
        state = {k: v for k, v in state.items() if k.startswith(prefix)}
    if any(k.startswith("ctc.") for k in state) and getattr(model, "token_list", None):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        try:
            require_same_labels(folder, model.token_list)
        except UserError as error:
            if not ignore_init_mismatch:
                raise
            logging.warning(f"not loaded from {path}: the CTC head; {error}")
            state = {k: v for k, v in state.items() if not k.startswith("ctc.")}
    if not state:
        raise UserError(f"--init_param {init_param}: no such tensors in the file")
    own = {k: v.shape for k, v in torch.nn.Module.state_dict(model).items()}
    adapted = {k.replace(".base_layer.", "."): k for k in own if ".base_layer." in k}
    state = {adapted.get(k, k): v for k, v in state.items()}
    misfits = [k for k, v in state.items() if own.get(k) != v.shape]
    if misfits and not ignore_init_mismatch:
        first = ", ".join(
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k])}"
            if k in own
            else f"{k}, which is not in it"
            for k in misfits[:3]
        )
        raise UserError(
            f"--init_param {init_param}: {len(misfits)} tensors do not fit this "
            f"model: {first}; --ignore_init_mismatch true leaves them out"
        )
    for name in misfits:
        logging.warning(f"not loaded from {path}: {name}")
        del state[name]
    model.load_state_dict(state, strict=False)


def require_same_labels(folder: Path, labels: Sequence[str]) -> None:
    """Refuse a training's or a model's folder whose CTC labels are others.

    A head of as many labels in another order fits, and would spell other letters.
    """
    from speechllm.utils.io import read_yaml

    if (folder / "tokens.txt").exists():
        known = read_token_list(str(folder / "tokens.txt"))
    elif (folder / "config.yaml").exists():
        known = read_yaml(folder / "config.yaml").get("ctc_token_list") or []
    else:
        return
    if not isinstance(known, list) or known == list(labels) or not known:
        return
    pairs = enumerate(zip_longest(known, labels, fillvalue="no label"))
    number, (there, here) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    raise UserError(
        f"{folder}: trained with other CTC labels, number {number} is {there!r} there "
        f"and {here!r} here; train the warm-up anew, or give it the token list that it "
        "had"
    )


def read_start(path: str, map_location: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, a model's folder or a hub id, by our names."""
    from speechllm.pretrained.resolve import resolve_model

    start = resolve_model(path) if is_hub_id(path) else Path(path)
    if is_nue_asr(start):
        from speechllm.models.nue_asr import speech_llm_state

        return speech_llm_state(start)
    return load_tensors(start, map_location)


def mend_checkpoint(output_dir: Path, criteria: Sequence[Sequence[str]] = ()) -> None:
    """Write what a kill behind ``checkpoint.pth`` left unwritten.

    That is the epoch's model and the links to the latest and the best one.

    Args:
        output_dir: ESPnet's folder of the training.
        criteria: ``best_model_criterion``.
    """
    checkpoint = output_dir / "checkpoint.pth"
    if not checkpoint.exists():
        return
    # our own file; ESPnet's reporter state in it is more than tensors
    states = torch.load(checkpoint, map_location="cpu", weights_only=False)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    model = output_dir / f"{reporter.get_epoch()}epoch.pth"
    if not model.exists():
        with atomic_open(model, "wb") as stream:
            torch.save(states["model"], stream)
    targets = {"latest.pth": model.name}
    for phase, name, mode in criteria:
        if reporter.has(phase, name):
            best = reporter.get_best_epoch(phase, name, mode)
            targets[f"{phase}.{name}.best.pth"] = f"{best}epoch.pth"
    for link, target in targets.items():
        temporary = output_dir / f".{link}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(output_dir / link)


def choose(option: str, choices: Mapping[str, type], args: argparse.Namespace) -> type:
    """The class that an option names; a config file may hold any name."""
    name = getattr(args, option)
    if name not in choices:
        raise UserError(f"{option} {name!r}: one of {', '.join(sorted(choices))}")
    return choices[name]


def check_options(what: str, function: Callable, options: Mapping) -> None:
    """Refuse options that an optimizer or scheduler does not have."""
    known = inspect.signature(function).parameters.keys() - {"params", "optimizer"}
    for name in options:
        if name not in known:
            raise UserError(
                f"{what}: unknown option {name!r}; one of {', '.join(sorted(known))}"
            )


def read_token_list(token_list: str | list[str]) -> list[str]:
    """Read CTC labels, one a line (ESPnet's token list)."""
    if not isinstance(token_list, str):
        return list(token_list)
    try:
        lines = Path(token_list).read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{token_list}: no such token list; run stage 5") from None
    if not lines or lines[0] != "<blank>":
        raise UserError(f"{token_list}, line 1: expected <blank>")
    return lines


@functools.lru_cache(maxsize=1)
def load_tokenizer(model: str):
    """The LLM's tokenizer, without the LLM."""
    from speechllm.pretrained.resolve import resolve_model
    from speechllm.text import t5_tokenizer

    return t5_tokenizer.load_tokenizer(resolve_model(model))
