"""Peak memory of training steps, measured in a separate process.

    python test/training/measure_step.py '{"encoder_conf": …, "llm_conf": …, …}'

prints the bytes that two updates took in addition to the process before them. The
request is a training config whose models are folders with a ``config.json``; their
weights are random.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speechllm.models.bridge import BRIDGES
from speechllm.models.encoders import ENCODERS
from speechllm.models.llm import LanguageModel
from speechllm.models.speech_llm import SpeechLLM
from speechllm.pretrained import resolve
from speechllm.training.resource_estimate import PROMPT_TOKENS

SECONDS, ANSWER = 10, 80


def resident(key: str) -> int:
    """Return ``VmRSS`` (current) or ``VmHWM`` (peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise ValueError(key)


def build(config: dict) -> SpeechLLM:
    """Build the model of a training config with random weights."""
    encoder = ENCODERS[config["encoder"]](random_init=True, **config["encoder_conf"])
    conf = dict(config["llm_conf"])
    shape = AutoConfig.from_pretrained(conf.pop("model"))
    dtype = getattr(torch, conf.pop("dtype", "float32"))
    causal_lm = AutoModelForCausalLM.from_config(
        shape, dtype=dtype, attn_implementation="eager"
    )
    tokenizer = SimpleNamespace(eos_token_id=1)
    llm = LanguageModel(causal_lm, tokenizer=tokenizer, **conf)
    bridge = BRIDGES[config["bridge"]](encoder.output_size, llm.hidden_size)
    options = config["model_conf"]
    return SpeechLLM(encoder, None, bridge, llm, ctc_weight=0.0, **options).train()


def steps(config: dict, batch: int) -> None:
    """Run two updates; the second with gradients that exist already."""
    model = build(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **config["optim_conf"])
    speech = torch.randn(batch, SECONDS * 16000)
    lengths = torch.tensor([SECONDS * 16000] * batch)
    targets = torch.full((batch, ANSWER), 2), torch.tensor([ANSWER] * batch)
    prefix = torch.full((batch, PROMPT_TOKENS), 3)
    suffix = torch.zeros(batch, 0, dtype=torch.long)
    for _ in range(2):
        loss, _, _ = model(
            speech,
            lengths,
            *targets,
            prompt_prefix=prefix,
            prompt_prefix_lengths=torch.tensor([PROMPT_TOKENS] * batch),
            prompt_suffix=suffix,
            prompt_suffix_lengths=torch.tensor([0] * batch),
        )
        loss.backward()
        del loss
        optimizer.step()  # gradients are kept, as with accum_grad


def main() -> None:
    config = json.loads(sys.argv[1])
    resolve.resolve_model = Path  # the folders have no weights
    torch.set_num_threads(1)
    batch = config["batch_bins"] // (SECONDS * 16000)
    small = copy.deepcopy(config)
    for part in ("encoder_conf", "llm_conf"):
        small[part]["model"] += "_small"
    steps(small, 1)  # load libraries and kernels before the measurement
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    steps(config, batch)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
