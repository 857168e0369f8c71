"""Table of ablations: what each experiment trains, its error rates and its time.

An experiment is a folder ``<exp_root>/<system>`` with ESPnet's ``config.yaml`` and
``tensorboard``, a decode dir with its scores, and optionally ``seconds``, the times of
its attempts, one per line.
"""

from __future__ import annotations

from pathlib import Path

from speechllm.data.kaldi_table import read_table
from speechllm.evaluation.bootstrap import SAMPLES, SEED
from speechllm.evaluation.report import collect_results
from speechllm.evaluation.system_comparison import compare_systems
from speechllm.evaluation.tables import METRICS, markdown_table, row_figure
from speechllm.evaluation.training_curves import epoch_curves
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml

SHOWN = ("wer", "cer", "cer_ctc")
MISSING = "–"
_BRIDGES = {"remove": "CTC removal", "average": "CTC averaging"}
_TUNINGS = {"full": "fine-tuned", "lora": "LoRA", "qlora": "QLoRA", "frozen": "frozen"}


def ablation_table(exp_root: str | Path, systems: list[str], base: str) -> str:
    """Return the table, in Markdown.

    A model that ignores the speech writes the same text for many utterances, and its
    word error rate says little then; so the number of different texts is listed, and
    the token accuracy on the validation set.

    Args:
        exp_root: folder of the experiments.
        systems: names of the experiments, in the order of the lines. Those without
            scores are listed as not run.
        base: experiment that the others are compared with.

    Raises:
        UserError: no experiment has scores, or a file is damaged.
    """
    exp_root = Path(exp_root)
    rows = [row for row in collect_results(exp_root) if row["system"] in systems]
    if not rows:
        raise UserError(f"{exp_root}: no scores of {', '.join(systems)} below it")
    if decode := next((row["decode"] for row in rows if row["system"] == base), None):
        compare_systems(rows, exp_root, exp_root / base / decode)
    header = ["row", "bridge", "CTC loss", "LLM", "encoder", "language"]
    header += [METRICS[metric] for metric in SHOWN] + [
        f"p of WER ({base})", "different texts", "dev accuracy", "minutes",
    ]  # fmt: skip
    lines = []
    for system in systems:
        own = [row for row in rows if row["system"] == system]
        if not own:
            lines.append([system, "not run", *[MISSING] * (len(header) - 2)])
            continue
        settings = describe(read_yaml(exp_root / system / "config.yaml"))
        places: dict[tuple, dict[str, dict]] = {}
        for row in own:
            place = row["decode"], row["set"], row["language"]
            places.setdefault(place, {})[row["metric"]] = row
        for place, scores in places.items():
            cells = [row_figure(scores[m]) if m in scores else MISSING for m in SHOWN]
            p = scores.get("wer", {}).get("p_value")
            cells.append(MISSING if p is None else f"{p:.3f}")
            texts = read_table(exp_root / system / place[0] / place[1] / "text")
            cells.append(f"{len(set(texts.values()))} of {len(texts)}")
            cells.append(token_accuracy(exp_root / system))
            cells.append(minutes(exp_root / system / "seconds"))
            lines.append([system, *settings, place[-1], *cells])
    utterances = max(row["utterances"] for row in rows)
    words = max(row.get("reference_words", 0) for row in rows)
    return (
        markdown_table(header, lines, left=6)
        + f"\n{utterances:,} utterances, {words:,} reference words. ± is half the "
        "width of the 95 % interval, p the p-value of the paired bootstrap against "
        f"`{base}` ({SAMPLES} samples, seed {SEED}). CTC CER is that of the CTC branch "
        "alone, in the same model. Different texts are those of the hypotheses of the "
        "set. Dev accuracy is that of the LLM's tokens, given the reference before "
        "them, after the best epoch. Minutes are of training, decoding and scoring, "
        "all attempts together.\n"
    )


def describe(config: dict) -> list[str]:
    """Return bridge, CTC loss, LLM and encoder of a training configuration."""
    bridge = config.get("bridge") or MISSING
    if bridge == "ctc_compression":
        bridge = _BRIDGES[config["bridge_conf"]["mode"]]
    weight = (config.get("model_conf") or {}).get("ctc_weight", 0.0)
    llm = MISSING
    if config.get("llm"):
        options = config.get("llm_conf") or {}
        llm = _TUNINGS.get(options.get("tuning", "lora"), str(options.get("tuning")))
        if options.get("random_init"):
            llm = "random"
    layers = (config.get("encoder_conf") or {}).get("trainable_layers", "all")
    encoder = {"all": "trained", 0: "frozen"}.get(layers, f"top {layers} layers")
    return [bridge, "yes" if weight > 0 else "no", llm, encoder]


def token_accuracy(experiment: Path) -> str:
    """Return the highest token accuracy on the validation set, in percent."""
    valid = epoch_curves(experiment / "tensorboard").get("valid", {})
    return f"{100 * max(valid['acc'].values()):.1f} %" if "acc" in valid else MISSING


def minutes(path: Path) -> str:
    """Return the sum of the seconds in a file, in minutes."""
    if not path.exists():
        return MISSING
    try:
        return f"{sum(map(float, path.read_text('utf-8').split())) / 60:.1f}"
    except ValueError:
        raise UserError(f"{path}: not a number per line; remove it") from None
