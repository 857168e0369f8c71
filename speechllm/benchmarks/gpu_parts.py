"""Parts of the check of a GPU; :mod:`speechllm.benchmarks.gpu` runs them.

Each returns a :class:`speechllm.benchmarks.gpu.Result`. In its CPU form with tiny
models a part computes the same and leaves out what only a GPU has.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechllm.benchmarks.decoding import (
    DecodingCost,
    decoding_table,
    measure_decoding,
)
from speechllm.benchmarks.decoding_systems import (
    RANDOM,
    VOCABULARY,
    DecodingSet,
)
from speechllm.benchmarks.gpu import FAILED, NOT_RUN, PASSED, Result
from speechllm.benchmarks.random_models import (
    export,
    noise_examples,
    random_batch,
    train_steps,
    training_config,
)
from speechllm.benchmarks.resources import (
    MEBIBYTE,
    PeakMemory,
    measure_in_process,
)
from speechllm.models.llm import LanguageModel
from speechllm.models.quantization import quantization_obstacle
from speechllm.models.speech_llm import build_speech_llm
from speechllm.text.tasks import Task
from speechllm.training.resource_estimate import (
    GIB,
    estimate,
)

#: Least share of tokens that are those of float32.
EQUAL_TOKENS = {"bfloat16": 0.95, "float16": 0.99}
MEMORY_TOLERANCE = 0.25  # of the estimate's peak
QLORA_STEPS = 12


def check_qlora(device: str, size: str) -> Result:
    """Train with 4-bit weights: the loss falls, the memory is near the estimate."""
    if obstacle := quantization_obstacle():
        return Result(NOT_RUN, obstacle)
    utterances = 8 if size == "full" else 2
    with tempfile.TemporaryDirectory() as folder:
        config = training_config(Path(folder), size, "qlora")
        config |= {"batch_type": "sorted", "batch_size": utterances}
        torch.manual_seed(1)
        memory = PeakMemory(device)
        model = build_speech_llm({**config, "token_list": None}).to(device).train()
        losses = train_steps(model, random_batch(model, utterances), QLORA_STEPS)
        peak = memory.peak()
        expected = estimate(config, attention="sdpa").total
    falls = losses[-1] < losses[0]
    near = device != "cuda" or abs(peak / expected - 1) <= MEMORY_TOLERANCE
    summary = (
        f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps; peak "
        f"{peak / GIB:.2f} GiB, estimated {expected / GIB:.2f} GiB"
    )
    if device != "cuda":
        summary += " (for a GPU; not compared on a CPU)"
    return Result(PASSED if falls and near else FAILED, summary)


def check_precision(device: str, size: str) -> Result:
    """Decode a model that knows its utterances in three precisions."""
    from speechllm.inference.speech_to_text import SpeechToText

    utterances, steps = (16, 200) if size == "full" else (4, 80)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = training_config(folder, "tiny", "full")
        torch.manual_seed(1)
        model = build_speech_llm({**config, "token_list": None}).to(device).train()
        batch = random_batch(model, utterances, seconds=2.0)
        losses = train_steps(model, batch, steps, lr=3e-3)
        waves = [wave.cpu().numpy() for wave in batch["speech"]]
        exported = export(model, config, folder / "model")
        texts = {}
        for dtype in ("float32", *EQUAL_TOKENS):
            loaded = SpeechToText.from_pretrained(exported, device, dtype)
            options = loaded.options({"beam_size": 1})
            tasks = [Task("asr", "en", "en")] * len(waves)
            results = loaded.decode_all(waves, tasks, options, 8)
            texts[dtype] = [result.text.split() for result in results]
    shares = {
        dtype: equal_share(texts["float32"], texts[dtype]) for dtype in EQUAL_TOKENS
    }
    figures = ", ".join(
        f"{dtype} {share:.1%} (at least {EQUAL_TOKENS[dtype]:.0%})"
        for dtype, share in shares.items()
    )
    passed = all(shares[dtype] >= least for dtype, least in EQUAL_TOKENS.items())
    number = sum(map(len, texts["float32"]))
    return Result(
        PASSED if passed and number else FAILED,
        f"equal tokens of {number}: {figures}; after {steps} steps to a loss of "
        f"{losses[-1]:.3f}",
    )


def check_4bit(device: str, size: str) -> Result:
    """Decode with the LLM in 4 bits and in bfloat16; logits are those of training."""
    from speechllm.inference.loading import load_model

    if obstacle := quantization_obstacle():
        return Result(NOT_RUN, obstacle)
    utterances, tokens = (16, 32) if size == "full" else (3, 8)
    options = {"beam_size": 1, "min_tokens": tokens, "tokens_per_second": 0.0}
    options |= {"extra_tokens": float(tokens), "retry_truncated": False}
    costs: dict[str, DecodingCost] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = training_config(folder, size, "qlora")
        torch.manual_seed(1)
        trained = build_speech_llm({**config, "token_list": None}).to(device).eval()
        for key, weight in trained.llm.named_parameters():
            if "lora_B" in key:  # zero before training
                nn.init.normal_(weight, std=0.02)
        exported = export(trained, config, folder / "model")
        loaded = load_model(exported, "4bit")[0].to(device)
        batch = torch.arange(7, 57, device=device).reshape(2, 25)
        expected, found = (logits_of(model.llm, batch) for model in (trained, loaded))
        error = float((found - expected).abs().mean() / expected.std())
        del trained, loaded
        if device == "cuda":
            torch.cuda.empty_cache()
        examples = noise_examples(folder, utterances, 5.0)
        for dtype in ("bfloat16", "4bit"):
            content = DecodingSet(
                str(exported), str(examples), options, device=device, dtype=dtype
            )
            for batch_size in ("1", "16"):
                if size == "tiny":
                    cost = measure_decoding(batch_size, content)
                else:  # in a process of its own, so that memory is free again
                    cost = measure_in_process(
                        "decode", batch_size, content, DecodingCost
                    )
                costs[f"{dtype} | {batch_size}"] = cost
    rows = [
        "| weights of the LLM | batch | tokens/s | model, MiB | peak above it, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for key, cost in costs.items():
        rows.append(
            f"| {key} | {utterances * tokens / cost.seconds:.0f} "
            f"| {cost.model_bytes / MEBIBYTE:.0f} | {cost.peak_bytes / MEBIBYTE:.0f} |"
        )
    whole, small = (
        costs[f"{dtype} | 16"].model_bytes for dtype in ("bfloat16", "4bit")
    )
    # the embeddings and the encoder are not in 4 bits
    smaller = device != "cuda" or small < 0.55 * whole
    return Result(
        PASSED if error < 0.1 and smaller else FAILED,
        f"{small / GIB:.2f} GiB with the model loaded, {whole / GIB:.2f} in bfloat16; "
        f"logits differ by {error:.1%} of their deviation from those of training",
        rows,
    )


@torch.inference_mode()
def logits_of(llm: LanguageModel, tokens: Tensor) -> Tensor:
    """Return the float32 logits (batch, length, vocabulary) of tokens."""
    return llm.head(llm.body(llm.embed(tokens), torch.ones_like(tokens)))


def check_decoding(device: str, size: str) -> Result:
    """Decode with a random Nue-ASR: batches against a plain loop of transformers."""
    tiny = size == "tiny"
    with tempfile.TemporaryDirectory() as folder:
        content = DecodingSet(
            model="tiny" if tiny else "nue-asr",
            examples=str(noise_examples(Path(folder), 2 if tiny else 4, 10.0)),
            generation={},
            limit=4 if tiny else 16,
            device=device,
            dtype="float32" if tiny else "bfloat16",
        )
        systems = ("plain", "1", "16")
        if tiny:
            costs = [measure_decoding(system, content) for system in systems]
        else:  # each in a process of its own, so that memory is free again
            costs = [
                measure_in_process("decode", system, content, DecodingCost)
                for system in systems
            ]
    plain, _, batched = costs
    differing = [
        sum(a != b for a, b in zip(plain.texts, cost.texts)) for cost in costs[1:]
    ]
    # in bfloat16 the texts of random weights, all tokens nearly alike, differ
    same = content.dtype != "float32" or not any(differing)
    return Result(
        PASSED if same and batched.texts else FAILED,
        f"batches of 16 are {plain.seconds / batched.seconds:.1f} × the plain loop's "
        f"speed; {differing[0]} and {differing[1]} of {len(plain.texts)} texts differ "
        f"at batch size 1 and 16 ({content.dtype})",
        decoding_table(costs).splitlines(),
    )


def check_step(device: str, size: str) -> Result:
    """Time a decoding step of GPT-NeoX against what the memory's bandwidth allows."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, StaticCache

    options = RANDOM["nue-asr" if size == "full" else "tiny"][1]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = GPTNeoXConfig(vocab_size=VOCABULARY, **options)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = GPTNeoXForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    weights -= model.get_input_embeddings().weight.nbytes  # one row is read
    least = weights / bandwidth(device)
    cache = StaticCache(config=config, max_cache_len=256)
    token = torch.ones(1, 1, dtype=torch.long, device=device)
    position = torch.full((1,), 128, device=device)
    mask = torch.ones(1, 256, dtype=torch.bool, device=device)

    def step(forward: Callable) -> Tensor:
        return forward(
            token,
            past_key_values=cache,
            attention_mask=mask,
            position_ids=position[None],
            cache_position=position,
            use_cache=True,
        ).logits

    modes: dict[str, dict[str, Any] | None] = {"eager": None}
    if device == "cuda":
        modes["torch.compile"] = {"mode": "default"}
        modes["torch.compile and CUDA graphs"] = {"mode": "reduce-overhead"}
    else:
        modes["torch.compile (tracing only)"] = {"backend": "aot_eager"}
    rows = ["| step | ms | of the bandwidth's |", "| --- | ---: | ---: |"]
    times, logits = {}, {}
    with torch.inference_mode():
        for name, compiled in modes.items():
            forward = model if compiled is None else torch.compile(model, **compiled)
            times[name] = time_of(lambda f=forward: step(f), device)
            logits[name] = step(forward).float().clone()
            rows.append(
                f"| {name} | {times[name] * 1000:.2f} | {times[name] / least:.1f} × |"
            )
    eager = logits["eager"]
    error = max(float((value - eager).abs().max()) for value in logits.values())
    scale = float(eager.abs().max())
    best = min(times, key=times.__getitem__)
    return Result(
        PASSED if error <= 0.05 * scale else FAILED,
        f"{weights / 1e9:.2f} GB of weights, {weights / least / 1e9:.0f} GB/s: at "
        f"least {least * 1000:.2f} ms; eager {times['eager'] * 1000:.2f} ms, best "
        f"{best} {times[best] * 1000:.2f} ms; logits differ by {error / scale:.1%}",
        rows,
    )


def check_strategies(device: str, size: str) -> Result:
    """Train a few steps with each of Lightning's strategies; losses are compared."""
    import yaml

    from speechllm.training.lightning_task import STRATEGIES

    for name in ("espnet2.bin.lightning_train", "lightning"):
        if find_spec("espnet2") is None or find_spec(name) is None:
            return Result(NOT_RUN, f"{name} is not installed")
    losses, reasons = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        examples = noise_examples(folder, 8, 2.0)
        config = training_config(folder, size, "lora")
        config |= {"max_epoch": 2, "batch_type": "sorted", "batch_size": 4}
        config |= {"optim": "adamw", "optim_conf": {"lr": 1e-3}, "num_workers": 0}
        config |= {"best_model_criterion": [["valid", "loss", "min"]]}
        (folder / "train.yaml").write_text(yaml.safe_dump(config), "utf-8")
        for strategy in STRATEGIES:
            if strategy == "deepspeed" and find_spec("deepspeed") is None:
                reasons.append("deepspeed is not installed")
                continue
            losses[strategy] = train_with(strategy, folder, examples, device)
    figures = ", ".join(f"{k} {v[0]:.4f} to {v[-1]:.4f}" for k, v in losses.items())
    passed = all(
        np.allclose(found, losses["ddp"], rtol=1e-2) and found[-1] < found[0]
        for found in losses.values()
    )
    summary = "; ".join([f"training loss {figures}", *reasons])
    return Result(PASSED if passed else FAILED, summary)


def check_attention(device: str, size: str) -> Result:
    """Run each kernel of scaled dot-product attention, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, length, dim = (32, 2048, 64) if size == "full" else (2, 64, 16)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(1)
    query, key, value = (
        torch.randn(2, heads, length, dim, device=device, dtype=dtype) for _ in range(3)
    )

    def run(positions: int = length) -> tuple[Tensor, Tensor]:
        leaf = query[:, :, :positions].detach().requires_grad_()
        output = nn.functional.scaled_dot_product_attention(
            leaf, key[:, :, :positions], value[:, :, :positions], is_causal=True
        )
        output.float().square().sum().backward()
        return output.detach(), leaf.grad

    rows = [
        "| kernel | ms | at a new length, ms | largest difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    new_lengths = range(length - 16, length)  # cuDNN compiles a plan for each
    worked, differences = [], []
    with sdpa_kernel(SDPBackend.MATH):
        expected = run()[0].float()
    for name in ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                difference = float((run()[0].float() - expected).abs().max())
                milliseconds = time_of(run, device) * 1000
                lengths = iter(new_lengths)
                new = time_of(lambda i=lengths: run(next(i)), device) * 1000
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            rows.append(f"| {name.lower()} | – | – | not on this device: {reason} |")
            continue
        worked.append(name.lower())
        differences.append(difference)
        rows.append(
            f"| {name.lower()} | {milliseconds:.2f} | {new:.2f} | {difference:.4f} |"
        )
    package = "installed" if find_spec("flash_attn") else "not installed"
    flash = device != "cuda" or "flash_attention" in worked
    return Result(
        PASSED if flash and max(differences) < 0.05 else FAILED,
        f"{', '.join(worked)} work; package flash-attn: {package}",
        rows,
    )


def equal_share(first: Sequence[list[str]], second: Sequence[list[str]]) -> float:
    """Return the share of equal tokens at the same positions of all texts."""
    pairs = [
        pair for a, b in zip(first, second) for pair in itertools.zip_longest(a, b)
    ]
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def train_with(strategy: str, folder: Path, examples: Path, device: str) -> list[float]:
    """Train with a strategy in a process of its own; return each epoch's loss.

    Raises:
        RuntimeError: the training failed; has its last line.
    """
    from speechllm.evaluation.training_curves import epoch_curves

    output = folder / strategy
    words: list[str | Path] = ["--strategy", strategy]
    words += ["--ngpu", "1" if device == "cuda" else "0"]
    words += ["--config", folder / "train.yaml", "--output_dir", output]
    words += ["--prompts", folder / "prompts.yaml"]
    for kind in ("train", "valid"):
        words += [f"--{kind}_shape_file", examples / "utt2num_samples"]
        for file, name, form in (
            ("wav.scp", "speech", "sound"),
            ("text", "text", "text"),
            ("utt2task", "task", "text"),
        ):
            words += [f"--{kind}_data_path_and_name_and_type"]
            words += [f"{examples / file},{name},{form}"]
    command = [sys.executable, "-m", "speechllm.bin.lightning_train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise RuntimeError(f"{strategy}: {lines[-1]}")
    return list(epoch_curves(output / "tensorboard")["train"]["loss"].values())


def bandwidth(device: str) -> float:
    """Return the bytes per second that a copy within memory reads and writes."""
    size = 1 << 30 if device == "cuda" else 1 << 26
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_of(lambda: target.copy_(source), device)


def time_of(function: Callable[[], Any], device: str, rounds: int = 10) -> float:
    """Return the median time of a call in seconds, after three calls to warm up."""
    seconds = []
    for round_number in range(rounds + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if round_number >= 3:
            seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))
