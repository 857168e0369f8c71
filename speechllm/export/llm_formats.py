"""LLM of a trained model in the formats of PEFT and transformers.

The adapters alone, as ``peft.PeftModel.from_pretrained`` loads them on the base LLM, or
the whole LLM with the adapters merged, as transformers and vLLM load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechllm.models.config import REVISIONS
from speechllm.utils.errors import UserError

PREFIX = "llm.causal_lm."
ADAPTER_FOLDER = "peft_adapter"  # in an exported model


def adapter_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the LoRA tensors of a checkpoint under the names of PEFT's files.

    Args:
        state: a checkpoint of SpeechLLM; adapters are ``….lora_A.default.weight``.
    """
    return {
        f"base_model.model.{name.removeprefix(PREFIX).replace('.default.', '.')}": value
        for name, value in state.items()
        if name.startswith(PREFIX) and ".lora_" in name
    }


def save_adapter(config: Mapping, state: Mapping[str, Any], folder: Path) -> bool:
    """Write the adapters in PEFT's layout.

    The folder has ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        config: the model's configuration.
        state: a checkpoint of SpeechLLM.
        folder: created.

    Returns:
        False if the LLM has no adapters; then nothing is written.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = adapter_tensors(state)
    conf = config.get("llm_conf") or {}
    if not tensors:
        return False
    options = {"r": 16, "lora_alpha": 32, **(conf.get("lora") or {})}
    options["target_modules"] = sorted(
        {
            name.removeprefix("base_model.model.").partition(".lora_")[0]
            for name in tensors
        }
    )
    settings = LoraConfig(**options, task_type="CAUSAL_LM", inference_mode=True)
    settings.base_model_name_or_path = conf["model"]
    settings.revision = (config.get(REVISIONS) or {}).get(conf["model"])
    folder.mkdir()
    settings.save_pretrained(folder)
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return True


def save_merged_llm(config: Mapping, state: Mapping[str, Any], folder: Path) -> None:
    """Write the LLM with the adapters merged, and its tokenizer, for transformers.

    Weights are in the precision of the frozen weights (``dtype`` of ``llm_conf``), of a
    fully trained LLM in float32.

    Args:
        config: the model's configuration.
        state: a checkpoint of SpeechLLM.
        folder: an existing, empty folder.

    Raises:
        UserError: the model has no LLM, or the checkpoint lacks its weights.
    """
    from speechllm.inference.loading import merge_adapters
    from speechllm.models.llm import LanguageModel

    if not config.get("llm"):
        raise UserError("--merged: this model has no LLM; export it without --merged")
    conf = {**config["llm_conf"], "gradient_checkpointing": False, "decoding": True}
    if conf.get("tuning") == "full":
        conf["dtype"] = "float32"
    llm = LanguageModel(**conf)
    own = {
        name.removeprefix("llm."): value
        for name, value in state.items()
        if name.startswith("llm.")
    }
    missing, unknown = llm.load_state_dict(own, strict=False)
    trained = {name for name, p in llm.named_parameters() if p.requires_grad}
    if lost := sorted(trained.intersection(missing)) + sorted(unknown):
        raise UserError(f"--merged: the checkpoint does not fit the LLM: {lost[0]}")
    merge_adapters(llm)
    llm.save(folder)
