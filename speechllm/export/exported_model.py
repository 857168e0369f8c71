"""Exported model: a small folder of trained weights, based on pretrained models."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechllm.audio import SAMPLING_RATE
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_num_samples, read_table
from speechllm.decoding.options import SearchOptions
from speechllm.models.config import (
    MODEL_KEYS,
    MODEL_TYPE,
    REVISIONS,
    TOKENS_SHA256,
    hub_revisions,
    pin_models,
    pretrained_names,
    read_revisions,
)
from speechllm.models.speech_decoder import FOLDER as FIRST_PASS
from speechllm.text.hotword_lists import MAX_TOKENS
from speechllm.text.joint_target import split_target
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory
from speechllm.utils.io import file_sha256, read_yaml, write_json

MODEL_FOLDER = FolderKind("model folder", ("model.safetensors", "prompts.yaml"))
MERGED_LLM = FolderKind("merged LLM")

EXTRA_TOKENS = SearchOptions.extra_tokens  # maximum length of an output for no speech
LIMIT_MARGIN = 1.5  # how much denser an output may be than any of the validation set


def export_model(
    exp_dir: str | Path,
    checkpoint: str,
    output: str | Path,
    first_pass: str | Path | None = None,
) -> int:
    """Write an inference folder from a training.

    The folder has ``config.json`` (the type of the model, for transformers'
    ``pipeline``), ``config.yaml`` (the model's parts, and the identity of the
    pretrained models under ``stands_on`` and their hub commits under ``revisions``;
    ``ctc_trained``, false for a CTC branch with
    random weights; ``generation``, the limits of :func:`output_limits`;
    ``max_hotword_tokens`` if it was trained with lists of hotwords),
    ``model.safetensors`` (trained tensors only), ``tokens.txt`` and ``bpe.model`` (CTC
    labels), ``prompts.yaml``, and with LoRA ``peft_adapter`` (the adapters for
    ``peft.PeftModel.from_pretrained``). ``first_pass`` has a fine-tuned model of the
    first pass.

    Args:
        exp_dir: ESPnet's output folder, with ``config.yaml``.
        checkpoint: file name of the checkpoint in it.
        output: the folder to write; files in it that this function did not write stay.
        first_pass: fine-tuned model of the first pass, a transformers folder.

    Returns:
        Size of ``model.safetensors`` in bytes.

    Raises:
        UserError: the training, the checkpoint or the first pass is missing.
    """
    import yaml
    from safetensors.torch import save_file

    from speechllm.export.llm_formats import ADAPTER_FOLDER, save_adapter
    from speechllm.pretrained.checkpoint import load_tensors
    from speechllm.pretrained.identity import model_identity
    from speechllm.pretrained.resolve import resolve_model

    trained = read_training(exp_dir)
    exp_dir = Path(exp_dir)
    if first_pass is not None and not (Path(first_pass) / "config.json").exists():
        raise UserError(f"{first_pass}: no model of the first pass; run stage 8")
    state = load_tensors(exp_dir / checkpoint)
    config = {key: trained.get(key) for key in MODEL_KEYS}
    pinned = read_revisions(exp_dir / "config.yaml")
    revisions = hub_revisions(config, pinned)
    config["stands_on"] = {
        name: model_identity(
            resolve_model(name, revision=revisions.get(name)),
            tokenizer=bool(config["llm"]) and name == config["llm_conf"]["model"],
        )
        for name in pretrained_names(config)
    }
    if revisions:
        config[REVISIONS] = revisions
    config["ctc_trained"] = is_ctc_trained(trained)
    config["generation"] = output_limits(trained)
    if lists := trained.get("hotword_conf"):
        config["max_hotword_tokens"] = lists.get("max_tokens", MAX_TOKENS)
    with atomic_directory(output, MODEL_FOLDER, [exp_dir]) as folder:
        save_file(
            {k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors"
        )
        save_adapter(config, state, folder / ADAPTER_FOLDER)
        if trained.get("ctc_token_list"):
            labels = "\n".join(trained["ctc_token_list"]) + "\n"
            (folder / "tokens.txt").write_text(labels, "utf-8")
            config[TOKENS_SHA256] = file_sha256(folder / "tokens.txt")
        (folder / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8"
        )
        write_json(folder / "config.json", {"model_type": MODEL_TYPE})
        if trained.get("ctc_bpemodel"):
            shutil.copyfile(trained["ctc_bpemodel"], folder / "bpe.model")
        if trained.get("prompts"):
            shutil.copyfile(trained["prompts"], folder / "prompts.yaml")
        if first_pass is not None:
            files = shutil.ignore_patterns(".*")
            shutil.copytree(first_pass, folder / FIRST_PASS, ignore=files)
        return (folder / "model.safetensors").stat().st_size


def is_ctc_trained(trained: Mapping[str, Any]) -> bool:
    """Return whether the CTC branch of a training has learned anything.

    It has if its loss has a weight, here or in the training whose checkpoint
    initialised it (``init_param``). A checkpoint without a config is taken as trained
    if it has a CTC branch, and one that is no longer there too.

    Args:
        trained: ``config.yaml`` of the training.
    """
    from speechllm.pretrained.checkpoint import is_hub_id, load_tensors

    if not trained.get("ctc_token_list") and "ctc_trained" not in trained:
        return False
    if "ctc_trained" in trained:  # an exported model
        return bool(trained["ctc_trained"])
    if (trained.get("model_conf") or {}).get("ctc_weight", 0.3) > 0:
        return True
    for start in trained.get("init_param") or []:
        name, _, prefix = str(start).partition(":")
        path = Path(name)
        if is_hub_id(name) or not "ctc.".startswith(prefix):
            continue
        if not path.exists():
            return True  # it cannot be known
        folder = path if path.is_dir() else path.parent
        if (folder / "config.yaml").exists():
            before = read_yaml(folder / "config.yaml")
            if "stands_on" in before:  # an export: older ones do not say
                before.setdefault("ctc_trained", (folder / "tokens.txt").exists())
            if is_ctc_trained(before):
                return True
        elif path.is_file() and any(
            name.startswith("ctc.") for name in load_tensors(path)
        ):
            return True
    return False


def output_limits(trained: Mapping[str, Any]) -> dict[str, float]:
    """Return the maximum length of outputs, from the texts of the validation set.

    Returns:
        ``tokens_per_second`` and ``extra_tokens`` of ``SearchOptions``; empty without
        an LLM or without the validation set.
    """
    from speechllm.pretrained.resolve import resolve_model
    from speechllm.text.prompts import answer_tokens
    from speechllm.text.t5_tokenizer import load_tokenizer

    sets = trained.get("valid_data_path_and_name_and_type") or []
    folder = next(
        (Path(path).parent for path, name, *_ in sets if name == "text"), None
    )
    if not trained.get("llm") or folder is None:
        return {}
    if not all((folder / name).exists() for name in ("text", "utt2num_samples")):
        return {}
    name = trained["llm_conf"]["model"]
    revision = (trained.get(REVISIONS) or {}).get(name)
    tokenizer = load_tokenizer(resolve_model(name, revision=revision))
    samples = read_num_samples(folder)
    tasks = read_utt2task(folder)
    densest = 0.0  # tokens per second
    for name, text in read_table(folder / "text").items():
        texts = split_target(tasks[name].name, text, f"{folder}/text, {name}")
        count = len(answer_tokens(tokenizer, *texts)) / len(texts)
        seconds = samples.get(name, 0) / SAMPLING_RATE
        densest = max(densest, (count - EXTRA_TOKENS) / max(seconds, 1.0))
    limit = max(4.0, math.ceil(LIMIT_MARGIN * densest))
    return {"tokens_per_second": limit, "extra_tokens": EXTRA_TOKENS}


def export_merged_llm(exp_dir: str | Path, checkpoint: str, output: str | Path) -> int:
    """Write the trained LLM alone, adapters merged, as a transformers model.

    Args:
        exp_dir: ESPnet's output folder, with ``config.yaml``.
        checkpoint: file name of the checkpoint in it.
        output: the folder to write.

    Returns:
        Size of the weights in bytes.

    Raises:
        UserError: the training or the checkpoint is missing, or it has no LLM.
    """
    from speechllm.export.llm_formats import save_merged_llm
    from speechllm.pretrained.checkpoint import load_tensors

    config = read_training(exp_dir)
    state = load_tensors(Path(exp_dir) / checkpoint)
    with atomic_directory(output, MERGED_LLM, [exp_dir]) as folder:
        pinned = pin_models(config, read_revisions(Path(exp_dir) / "config.yaml"))
        save_merged_llm(pinned, state, folder)
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def read_training(exp_dir: str | Path) -> dict:
    """Return the configuration of a training.

    Raises:
        UserError: the folder has no ``config.yaml``.
    """
    path = Path(exp_dir) / "config.yaml"
    if not path.exists():
        raise UserError(f"{exp_dir}: no training, config.yaml is missing; run stage 9")
    return read_yaml(path)
