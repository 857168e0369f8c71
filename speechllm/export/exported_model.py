"""Exported model: a small folder of trained weights, based on pretrained models."""

from __future__ import annotations

import shutil
from pathlib import Path

from speechllm.models.config import MODEL_KEYS, TOKENS_SHA256, pretrained_names
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory, file_sha256


def export_model(exp_dir: str | Path, checkpoint: str, output: str | Path) -> int:
    """Write an inference folder from a training.

    The folder has ``config.yaml`` (the model's parts, and the fingerprints of the
    pretrained models under ``stands_on``), ``model.safetensors`` (trained tensors
    only), ``tokens.txt`` and ``bpe.model`` (CTC labels) and ``prompts.yaml``.

    Args:
        exp_dir: ESPnet's output folder, with ``config.yaml``.
        checkpoint: file name of the checkpoint in it.
        output: the folder to write; replaced as a whole.

    Returns:
        Size of ``model.safetensors`` in bytes.

    Raises:
        UserError: the training or the checkpoint is missing.
    """
    import yaml
    from safetensors.torch import save_file

    from speechllm.pretrained.checkpoint import load_tensors
    from speechllm.pretrained.model_folder import model_fingerprint
    from speechllm.pretrained.resolve import resolve_model

    exp_dir = Path(exp_dir)
    try:
        trained = yaml.safe_load((exp_dir / "config.yaml").read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{exp_dir}: no training, config.yaml is missing; run stage 9"
        ) from None
    state = load_tensors(exp_dir / checkpoint)
    config = {key: trained.get(key) for key in MODEL_KEYS}
    config["stands_on"] = {
        name: model_fingerprint(
            resolve_model(name),
            tokenizer=bool(config["llm"]) and name == config["llm_conf"]["model"],
        )
        for name in pretrained_names(config)
    }
    with atomic_directory(output) as folder:
        save_file(
            {k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors"
        )
        if trained.get("ctc_token_list"):
            labels = "\n".join(trained["ctc_token_list"]) + "\n"
            (folder / "tokens.txt").write_text(labels, "utf-8")
            config[TOKENS_SHA256] = file_sha256(folder / "tokens.txt")
        (folder / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8"
        )
        if trained.get("ctc_bpemodel"):
            shutil.copyfile(trained["ctc_bpemodel"], folder / "bpe.model")
        if trained.get("prompts"):
            shutil.copyfile(trained["prompts"], folder / "prompts.yaml")
        return (folder / "model.safetensors").stat().st_size
