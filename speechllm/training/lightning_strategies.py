"""Strategies of Lightning: DDP, FSDP and DeepSpeed, and their checkpoints.

FSDP is torch's FSDP2 (``fully_shard``), which shards parameters one by one, so that
frozen and trained weights may have different precisions.
"""

from __future__ import annotations

import argparse
import os
import pickle
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from speechllm.models.adaptation import transformer_layers
from speechllm.models.speech_llm import SpeechLLM
from speechllm.pretrained.trainer_checkpoint import (
    PREFIX,
    deepspeed_classes,
    load_shards,
)
from speechllm.training.lightning_task import read_deepspeed_config
from speechllm.utils.errors import UserError


def changed_tensors(module: LightningModule) -> set[str]:
    """Return the names of the tensors of a checkpoint."""
    return {PREFIX + name for name in module.model.changed}


def shard(model: SpeechLLM, mesh) -> None:
    """Shard a model over processes: each transformer layer is a unit, the rest another.

    Zhao et al. 2023, "PyTorch FSDP"; torch.distributed.fsdp.fully_shard.
    """
    from torch.distributed.fsdp import fully_shard

    for part in (model.encoder, model.llm):
        if part is None:
            continue
        try:
            layers = transformer_layers(part)
        except ValueError:  # an encoder without such layers
            layers = []
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with sharded checkpoints that cannot run code."""

    is_sharded = False

    def setup_environment(self) -> None:
        """Lay the processes out for data parallelism alone."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict:
        """Return this process's shards of what training changes."""
        module = self.lightning_module
        changed = changed_tensors(module)
        state = nn.Module.state_dict(module)
        return {name: tensor for name, tensor in state.items() if name in changed}

    def optimizer_state(self, optimizer) -> dict:
        """Return this process's shards of the optimizer state."""
        return get_optimizer_state_dict(self.model, optimizer)

    def load_checkpoint(self, checkpoint_path, weights_only=None) -> dict:
        """Load model and optimizer; return the state of the loops.

        Raises:
            UserError: the checkpoint contains more than tensors and numbers.
        """
        path = Path(self.broadcast(checkpoint_path))
        try:
            return self.read_checkpoint(path)
        except (pickle.UnpicklingError, UserError):
            raise UserError(
                f"{path}: not a checkpoint of this training, or damaged; it is not "
                "read, since it could run code; move it away to resume without it"
            ) from None

    def read_checkpoint(self, path: Path) -> dict:
        """Load the shards of model and optimizer, and ``meta.pt``."""
        state = {"state_dict": self.lightning_module_state_dict()}
        load_shards(state, path)  # into the model's tensors
        for index, optimizer in enumerate(self.optimizers):
            key = f"optimizer_{index}"
            state = {key: self.optimizer_state(optimizer)}
            load_shards(state, path)
            set_optimizer_state_dict(self.model, optimizer, state[key])
        return torch.load(path / "meta.pt", map_location="cpu")


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO, also on CPUs, which Lightning refuses."""

    def setup_environment(self) -> None:
        """Set the processes up."""
        super(DeepSpeedStrategy, self).setup_environment()

    @property
    def root_device(self) -> torch.device:
        """Device of this process, with an index, which DeepSpeed requires."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Let Lightning decide when to step, as with the other strategies.

        DeepSpeed's own count of batches continues over epochs, is in no checkpoint,
        and Lightning's losses are divided by ``accum_grad`` already.
        """
        return False

    def block_backward_sync(self) -> AbstractContextManager:
        """Do nothing between the batches of a step; ``backward`` tells DeepSpeed."""
        return nullcontext()

    def backward(self, closure_loss, optimizer, *args, **kwargs) -> None:
        """Add to the gradients, and prepare a step after the last batch of one."""
        step = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(step)
        super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def setup_distributed(self) -> None:
        """Connect the processes."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def build_strategy(args: argparse.Namespace) -> Strategy:
    """Return the strategy of ``--strategy``."""
    if args.strategy == "fsdp":
        return ShardedStrategy()
    if args.strategy == "deepspeed":
        if args.ngpu == 0:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        config = {"zero_optimization": {"stage": 2}}
        if args.deepspeed_config is not None:
            config = read_deepspeed_config(args.deepspeed_config)
        torch.serialization.add_safe_globals(deepspeed_classes())
        return ZeroStrategy(
            config={
                "zero_allow_untested_optimizer": True,
                "train_micro_batch_size_per_gpu": 1,  # only of its throughput log
                **config,
            },
            exclude_frozen_parameters=True,
        )
    return DDPStrategy(find_unused_parameters=args.unused_parameters)
