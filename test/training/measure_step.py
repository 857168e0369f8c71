"""Peak memory of LLM training steps, measured in a separate process.

    python test/training/measure_step.py '{"shape": …, "llm_conf": …, "batch": …}'

prints the bytes that two steps took in addition to the process before them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speechllm.models.llm import LanguageModel


def resident(key: str) -> int:
    """Return ``VmRSS`` (current) or ``VmHWM`` (peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise ValueError(key)


def steps(conf: dict, shape: dict, batch: int, length: int, answer: int) -> None:
    """Run two training steps on sequences of ``length`` with ``answer`` targets."""
    config = AutoConfig.for_model("llama", **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tokenizer = SimpleNamespace(eos_token_id=1)
    llm = LanguageModel(model, tokenizer=tokenizer, **conf).train()
    optimizer = torch.optim.AdamW([p for p in llm.parameters() if p.requires_grad])
    for _ in range(2):
        prompt = torch.zeros(length - answer + 1, llm.hidden_size)
        loss, _ = llm.answer_loss([prompt] * batch, [[2] * answer] * batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    request = json.loads(sys.argv[1])
    conf, shape = request["llm_conf"], request["shape"]
    torch.set_num_threads(1)
    small = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    # load libraries and kernels before the measurement
    steps(conf, {**shape, **small, "num_hidden_layers": 1}, 1, 8, 4)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    steps(conf, shape, request["batch"], request["length"], request["answer"])
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
