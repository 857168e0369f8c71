"""LoRA adapters and gradient checkpointing, for encoders and the LLM."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")


def add_lora(
    module: nn.Module, options: Mapping | None, linear_layers: Iterable[str]
) -> None:
    """Inject LoRA adapters, trained in float32; everything else is frozen.

    Args:
        module: changed in place.
        options: of ``peft.LoraConfig``; r is 16 and lora_alpha 32 by default.
        linear_layers: names of the layers adapted by ``target_modules: all-linear``,
            the default.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    config.update(options or {})
    if config["target_modules"] == "all-linear":
        config["target_modules"] = sorted(linear_layers)
    module.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(**config), module)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def linear_layers(module: nn.Module, without: Iterable[nn.Module] = ()) -> list[str]:
    """Return the names of the linear layers of a module, sorted.

    Args:
        without: modules that are left out.
    """
    skipped = {id(other) for other in without}
    return sorted(
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) not in skipped
    )


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Recompute the activations of layers in the backward pass.

    Unlike transformers' ``gradient_checkpointing_enable`` this does not depend on the
    mode: the layers of a frozen LLM are in evaluation mode, and the gradient passes
    through them to the bridge.
    """
    for layer in layers:
        layer.forward = functools.partial(  # type: ignore[method-assign]
            recomputed, layer.forward
        )


def recomputed(forward: Callable, *args, **options):
    """Call a layer and keep only its inputs for the backward pass.

    With a KV cache, which a second pass would change, or without gradients, it is a
    plain call.
    """
    from torch.utils.checkpoint import checkpoint

    has_cache = any(options.get(name) is not None for name in CACHES)
    if has_cache or not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, **options)


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Return the outermost layers of a transformers model that can be checkpointed.

    Raises:
        ValueError: there are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[nn.Module] = []

    def collect(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, GradientCheckpointingLayer):
                found.append(child)
            else:
                collect(child)

    collect(model)
    if not found:
        raise ValueError(
            f"gradient_checkpointing: {type(model).__name__} has no layers that "
            "support it; set it to false"
        )
    return found
