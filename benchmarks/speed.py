"""How long a step takes, against peers, in one process, taking turns.

::

    python benchmarks/speed.py                 # both workloads
    python benchmarks/speed.py --workload toy

``resnet32``: one Meta-Weight-Net step (a batch of 100 to train on, 100 to judge by, single
precision). ``toy``: logistic regression with 20 learned penalties, where the library's own work is
what one sees. Every contender gets the same tensors; in each round all of them step in turn, so
that a machine whose speed drifts slows all alike. Medians, spread and ratios are printed and
written as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from speed_resnet32 import resnet32_contenders
from speed_toy import toy_contenders

import metaweight

Step = Callable[[], None]
Contenders = dict[str, Step]


def measure(contenders: Contenders, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return seconds per step of each contender, one number per round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        for _ in range(2):
            step()
    for number in range(rounds):
        names = list(contenders)
        names = names[number % len(names) :] + names[: number % len(names)]
        for name in names:
            step = contenders[name]
            start = time.perf_counter()
            for _ in range(steps):
                step()
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def table(seconds: dict[str, list[float]], base: str) -> list[dict[str, float | str]]:
    """Return per contender median, quartiles and the median of its per-round ratio to ``base``."""
    rows: list[dict[str, float | str]] = []
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        ratios = [v / b for v, b in zip(values, seconds[base], strict=True)]
        rows.append(
            {
                "contender": name,
                "median_ms": middle * 1e3,
                "quartile_1_ms": low * 1e3,
                "quartile_3_ms": high * 1e3,
                f"ratio_to_{base}": statistics.median(ratios),
            }
        )
    return rows


def markdown(rows: list[dict[str, float | str]], title: str) -> str:
    """Return the rows as a Markdown table."""
    keys = list(rows[0])
    lines = [f"### {title}", "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [v if isinstance(v, str) else f"{v:.4g}" for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment() -> dict[str, str | int]:
    """Return what the numbers depend on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metaweight": metaweight.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=["resnet32", "toy", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=None, help="turns of every contender")
    parser.add_argument("--threads", type=int, default=2, help="threads of the resnet32 workload")
    parser.add_argument("--batch-size", type=int, default=100, help="of the resnet32 workload")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    report: dict[str, object] = {}
    text = []
    if arguments.workload in ("resnet32", "all"):
        torch.set_num_threads(arguments.threads)
        seconds = measure(resnet32_contenders(arguments.batch_size), arguments.rounds or 9, steps=1)
        rows = table(seconds, base="plain step")
        report["resnet32"] = {"environment": environment(), "rows": rows}
        text.append(markdown(rows, f"Meta-Weight-Net step, ResNet-32, {environment()}"))
    if arguments.workload in ("toy", "all"):
        torch.set_num_threads(1)
        for unroll in (1, 100):
            seconds = measure(toy_contenders(unroll), arguments.rounds or 25, steps=100)
            rows = table(seconds, base="hand-written")
            report[f"toy, unroll {unroll}"] = {"environment": environment(), "rows": rows}
            text.append(markdown(rows, f"Toy program, unroll {unroll}, {environment()}"))
    print("\n\n".join(text))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "speed.json").write_text(json.dumps(report, indent=2))
    (arguments.out / "speed.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
