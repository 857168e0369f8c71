"""ESPnet task of the SpeechLLM: options, data, model, optimizer and training."""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.class_choices import ClassChoices
from espnet2.train.distributed_utils import get_rank
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str_or_none
from torch.distributed import DistError
from torch.multiprocessing import ProcessExitedException

from speechllm.audio.io import SAMPLING_RATE
from speechllm.models.bridge import BRIDGES
from speechllm.models.config import (
    MODEL_KEYS,
    choose,
    hub_revisions,
    pin_models,
    read_revisions,
)
from speechllm.models.ctc import CTC
from speechllm.models.encoders import ENCODERS
from speechllm.models.llm import (
    LanguageModel,
    avoid_cudnn_attention,
    load_llm_tokenizer,
)
from speechllm.models.quantization import quantization_obstacle
from speechllm.models.speech_llm import SpeechLLM, build_speech_llm
from speechllm.text.ctc_labels import CTCTokenizer, read_token_list
from speechllm.text.prompts import read_prompts
from speechllm.training.hotword_sampling import ListOptions, build_hotword_sampler
from speechllm.training.initialization import (
    TRAINING,
    repair_checkpoint,
    require_same_labels,
    require_same_start,
    safe_checkpoints,
)
from speechllm.training.options import (
    check_training_options,
    read_training_config,
)
from speechllm.training.preprocessor import ExamplePreprocessor, collate
from speechllm.training.processes import describe_end, train_on_cpu
from speechllm.training.progress import ProgressIterFactory
from speechllm.training.signals import handle_stop_signals, send_to_children
from speechllm.training.splits import SplitIterFactory
from speechllm.training.trainer import FILE_NAME, SpeechLLMTrainer
from speechllm.utils.errors import UserError, run_main, without_worker_traceback
from speechllm.utils.folders import claim_directory

AbsESPnetModel.register(SpeechLLM)  # the trainer accepts only its subclasses
encoder_choices = ClassChoices("encoder", ENCODERS, default="whisper")
bridge_choices = ClassChoices("bridge", BRIDGES, default="convolution", optional=True)
llm_choices = ClassChoices(
    "llm", {"causal_lm": LanguageModel}, default="causal_lm", optional=True
)
#: Schedulers whose options set one learning rate, in place of the optimizer's.
ONE_RATE = {
    "cosineannealingwarmuprestarts",
    "cycliclr",
    "exponentialdecaywarmup",
    "onecyclelr",
    "piecewiselinearwarmuplr",
}


def paged_adamw(
    params,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW, whose state is paged out when GPU memory is full.

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

    class PagedAdamW(PagedAdamW32bit):
        """AdamW that can be resumed: loaded tensors are ordinary memory.

        They still carry the mark of paged memory, with which the next step would end
        the process (bitsandbytes' issues 782 and 1708).
        """

        def load_state_dict(self, state_dict: dict, move_to_device: bool = True):
            """Copy the state into buffers of this optimizer."""
            super().load_state_dict(state_dict, move_to_device=False)
            for parameter, state in self.state.items():
                for name in ("state1", "state2"):
                    buffer = self.get_state_buffer(parameter)
                    state[name] = buffer.copy_(state[name])

    return PagedAdamW(
        params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay
    )


abs_task.optim_classes["paged_adamw"] = paged_adamw


class SpeechLLMTask(AbsTask):
    """Speech recognition and translation with a pretrained encoder and an LLM."""

    num_optimizers = 1
    class_choices_list = [encoder_choices, bridge_choices, llm_choices]
    trainer = SpeechLLMTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        """Add this task's options to ESPnet's."""
        parser.set_defaults(num_att_plot=0)
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
            help="YAML file with a prompt for each task; required with an LLM",
        )
        group.add_argument(
            "--hotword_conf",
            action=NestedDictAction,
            default={},
            help="Lists of hotwords in the prompts: max_tokens, without, true_words, "
            "false_words (see training/hotword_sampling.py); none: no lists",
        )
        group.add_argument(
            "--lr_scales",
            action=NestedDictAction,
            default={},
            help="Factors on the learning rate by prefix of the parameter's name, e.g. "
            "'{encoder: 0.1}'",
        )
        group.add_argument(
            "--ctc_conf",
            action=NestedDictAction,
            default=get_default_kwargs(CTC),
            help="Options of the CTC branch: zero_infinity",
        )
        group.add_argument(
            "--model_conf",
            action=NestedDictAction,
            default=get_default_kwargs(SpeechLLM),
            help="Options of the model: ctc_weight, label_smoothing, feature_dropout",
        )
        group.add_argument(
            "--save_every",
            type=str_or_none,
            default="30m",
            help="How often to save within an epoch: 90s, 30m, 2h, '500 steps' or none",
        )
        group.add_argument(
            "--num_processes",
            type=int,
            default=1,
            help="Processes of this machine that train together, with --ngpu 0",
        )
        for choices in cls.class_choices_list:
            choices.add_arguments(group)

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool):
        """Return the collation: pads waveforms with 0 and token ids with -1."""
        return collate

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool):
        """Return the preprocessor with the CTC labels and the LLM's tokenizer."""
        ctc_tokenizer = tokenizer = prompts = sampler = None
        if args.ctc_token_list:
            ctc_tokenizer = CTCTokenizer(
                read_token_list(args.ctc_token_list), args.ctc_bpemodel
            )
        if args.llm:
            if args.prompts is None:
                raise UserError("an LLM needs --prompts, a YAML file")
            llm = pin_models({"llm_conf": args.llm_conf}, recorded_revisions(args))
            tokenizer = load_llm_tokenizer(llm["llm_conf"]["model"])
            prompts = read_prompts(args.prompts)
            check_options("hotword_conf", ListOptions, args.hotword_conf or {})
            sampler = build_hotword_sampler(args, prompts, tokenizer, train)
        limit = 30 * SAMPLING_RATE if args.encoder == "whisper" else None
        return ExamplePreprocessor(ctc_tokenizer, tokenizer, prompts, limit, sampler)

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False):
        """Return the data names that every example must have."""
        return ("speech",)

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False):
        """Return the data names that an example may have."""
        return ("text", "text_ctc", "task")

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SpeechLLM:
        """Build the model.

        The CTC labels are put into ``args`` and so saved to config.yaml, as are
        ``tuning: lora`` where this machine has no 4-bit weights, and the hub commits of
        the pretrained models, which a resumed training uses again.
        """
        avoid_cudnn_attention()
        if isinstance(args.ctc_token_list, str):
            args.ctc_token_list = read_token_list(args.ctc_token_list)
        quantized = args.llm and args.llm_conf.get("tuning") == "qlora"
        if quantized and (obstacle := quantization_obstacle()):
            logging.warning(f"{obstacle}; LoRA on whole weights instead")
            args.llm_conf = {**args.llm_conf, "tuning": "lora"}
        config = {key: getattr(args, key) for key in MODEL_KEYS}
        pinned = recorded_revisions(args)
        if not args.collect_stats:
            args.revisions = hub_revisions(config, pinned)
        try:
            config = pin_models(config, pinned)
            return build_speech_llm({**config, "token_list": args.ctc_token_list})
        except (TypeError, ValueError) as error:
            raise UserError(f"the model cannot be built: {error}") from error

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module):
        """Return one optimizer for the trained parameters, with ``lr_scales``.

        Raises:
            UserError: an unknown optimizer, scheduler or option, an ``lr_scales``
                prefix without trained parameters, ``lr_scales`` that the scheduler
                ignores, or no trained parameter at all.
        """
        scheduler = None
        try:
            optimizer = choose("optim", args.optim, abs_task.optim_classes)
            if args.scheduler is not None:
                classes = abs_task.scheduler_classes
                scheduler = choose("scheduler", args.scheduler, classes)
        except ValueError as error:
            raise UserError(str(error)) from error
        groups: dict[float, list] = {}  # scale to parameters
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
            raise UserError(f"lr_scales: no trained parameter begins with {prefix}")
        if not groups:
            raise UserError("nothing to train: every part of the model is frozen")
        if len(groups) > 1 and args.scheduler in ONE_RATE:
            raise UserError(
                f"lr_scales: scheduler {args.scheduler} sets one learning rate for all "
                "parameters; use warmuplr, tristagelr or cosineannealinglr, which keep "
                "the factors, or leave lr_scales out"
            )
        check_options("optim_conf", optimizer, args.optim_conf)
        if scheduler is not None:
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
        """Return ESPnet's batches, in training with progress lines.

        Args:
            kwargs: of a split, from :meth:`build_multiple_iter_factory`.

        Raises:
            UserError: a batch has too few utterances for all processes.
        """
        try:
            factory = super().build_iter_factory(args, distributed_option, mode, kwargs)
        except RuntimeError as error:
            if "batch-size must be equal or more than world_size" not in str(error):
                raise
            found, _, needed = str(error).rpartition(": ")[2].partition(" < ")
            raise UserError(
                f"a batch of the {mode} set has {found} of at least {needed} "
                "utterances, one for each process; use a larger batch_size, a larger "
                "set or fewer processes"
            ) from None
        if kwargs is None:
            return cls.with_progress(factory, args, distributed_option, mode)
        return factory

    @classmethod
    def build_multiple_iter_factory(cls, args, distributed_option, mode):
        """Return the batches of tables in splits, see :mod:`~.splits`.

        Raises:
            UserError: epochs of too few batches, which always leave out some splits.
        """
        factory = super().build_multiple_iter_factory(args, distributed_option, mode)
        count = len(factory.build_funcs)
        if mode == "train" and (args.num_iters_per_epoch or count) < count:
            raise UserError(
                f"num_iters_per_epoch {args.num_iters_per_epoch}: at least {count}, a "
                "batch of each split of the tables; others are never read"
            )
        splits = SplitIterFactory(factory.build_funcs, factory.seed, factory.shuffle)
        return cls.with_progress(splits, args, distributed_option, mode)

    @classmethod
    def with_progress(cls, factory, args, distributed_option, mode):
        """Return a factory that prints progress lines in training."""
        show = mode == "train" and distributed_option.dist_rank in (None, 0)
        return ProgressIterFactory(factory, args.max_epoch, show=show)

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd=None):
        """Check the options, then train; ESPnet does not check those of a file.

        Raises:
            UserError: the config is not YAML, a value has another type or range, or a
                process was killed.
        """
        args = cls.parse(cmd) if args is None else args
        if args.num_processes > 1 and args.ngpu > 0:
            raise UserError(
                f"--num_processes {args.num_processes} is for --ngpu 0; with GPUs "
                "there is one process for each"
            )
        try:
            if args.num_processes > 1 and args.dist_rank is None:
                train_on_cpu(cls.main, args)
            elif args.multiprocessing_distributed and args.ngpu > 1:
                with handle_stop_signals(send_to_children):
                    super().main(args=args, cmd=cmd)
            else:
                super().main(args=args, cmd=cmd)
        except ProcessExitedException as error:
            if error.signal_name is None:  # the process has printed its error
                sys.exit(error.exit_code)
            raise UserError(describe_end(error, args)) from None

    @classmethod
    def parse(cls, cmd=None) -> argparse.Namespace:
        """Parse and check the options of a training.

        Raises:
            UserError: the config is not YAML, or a value has another type or range.
        """
        parser = cls.get_parser()
        parser.prog = f"python -m speechllm.bin.{Path(sys.argv[0]).stem}"
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        config = first.parse_known_args(cmd)[0].config
        if config is not None and Path(config).exists():
            read_training_config(config)
        args = parser.parse_args(cmd)
        # values of the config have been checked
        for name, value in check_training_options(vars(args), "command line").items():
            setattr(args, name, value)
        return args

    @classmethod
    def main_worker(cls, args: argparse.Namespace):
        """Train or collect statistics, in the process of one GPU."""
        if multiprocessing.parent_process() is None:
            cls.run_worker(args)
        else:
            run_main(functools.partial(cls.run_worker, args))

    @classmethod
    def run_worker(cls, args: argparse.Namespace):
        """Train or collect statistics, with atomic checkpoints; resume after a kill.

        Raises:
            UserError: the output folder is not of a training, or a state in it is not
                of this one.
        """
        first = get_rank(args.dist_rank, args.dist_launcher) in (None, 0)
        if first and args.output_dir:
            claim_directory(args.output_dir, TRAINING)
        if args.collect_stats:  # lengths only, no features to normalise
            args.model_conf = {"extract_feats_in_collect_stats": False}
        else:
            output_dir = Path(args.output_dir)
            states = [output_dir / name for name in ("checkpoint.pth", FILE_NAME)]
            begun = any(path.exists() for path in states)
            if begun and args.ctc_token_list:
                labels = read_token_list(args.ctc_token_list)
                require_same_labels(output_dir, labels)
            if begun and args.resume and first:
                require_same_start(output_dir, args.init_param)
            if first:
                repair_checkpoint(output_dir, args.best_model_criterion)
        try:
            with safe_checkpoints():
                super().main_worker(args)
        except UserError as error:
            raise without_worker_traceback(error) from error
        except RuntimeError as error:
            if "closed by peer" not in str(error) and not isinstance(error, DistError):
                raise
            reason = str(error).splitlines()[0].partition(". This is typically")[0]
            # not an "error:" line, of which the job runner shows the last ones
            sys.exit(f"no connection to another process, whose log says why: {reason}")


def recorded_revisions(args: argparse.Namespace) -> dict[str, str]:
    """Return the hub commits with which a training in the output folder began."""
    if args.output_dir:
        with suppress(UserError):  # cut off by a kill
            return read_revisions(Path(args.output_dir) / "config.yaml")
    return {}


def check_options(section: str, function: Callable, options: Mapping) -> None:
    """Raise UserError if an optimizer or another part lacks one of the options."""
    known = inspect.signature(function).parameters.keys() - {"params", "optimizer"}
    for name in options:
        if name not in known:
            raise UserError(
                f"{section}: unknown option {name!r}; one of {', '.join(sorted(known))}"
            )
