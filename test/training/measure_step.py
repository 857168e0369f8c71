"""Peak memory of LLM training steps, measured in a process of its own.

    python test/measure_step.py '{"shape": …, "llm_conf": …, "batch": …}'

prints the bytes that two steps took beyond what the process had before.
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
    """``VmRSS`` (now) or ``VmHWM`` (the most) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise ValueError(key)


def steps(conf: dict, shape: dict, batch: int, read: int, answer: int) -> None:
    config = AutoConfig.for_model("llama", **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tokenizer = SimpleNamespace(eos_token_id=1)
    llm = LanguageModel(model, tokenizer=tokenizer, **conf).train()
    optimizer = torch.optim.AdamW([p for p in llm.parameters() if p.requires_grad])
    for _ in range(2):
        prompt = torch.zeros(read - answer + 1, llm.hidden_size)
        loss, _ = llm.answer_loss([prompt] * batch, [[2] * answer] * batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    asked = json.loads(sys.argv[1])
    conf, shape = asked["llm_conf"], asked["shape"]
    torch.set_num_threads(1)
    small = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    steps(
        conf, {**shape, **small, "num_hidden_layers": 1}, 1, 8, 4
    )  # loads what it needs
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    steps(conf, shape, asked["batch"], asked["read"], asked["answer"])
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
