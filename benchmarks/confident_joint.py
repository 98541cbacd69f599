"""Time the batch filter of online confident learning against the same call of cleanlab.

Both return which labels of a batch are contradicted, from probabilities in memory; they take turns,
so that a machine whose speed drifts slows both alike. ::

    python benchmarks/confident_joint.py --out results/confident_joint
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from turns import environment

from metaweight.noise.confident_joint import contradicted

Call = Callable[[], Any]


def batch(size: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities of a half-trained network, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (size,), generator=generator)
    logits = torch.randn(size, classes, generator=generator)
    logits[torch.arange(size), labels] += 2.0
    return logits.softmax(1), labels


def contenders(size: int, classes: int, seed: int) -> tuple[Call, Call]:
    """Return our filter and cleanlab's on the same batch, after a check that they agree."""
    from cleanlab.count import compute_confident_joint

    p, labels = batch(size, classes, seed)
    arrays = labels.numpy(), p.numpy()

    def ours() -> torch.Tensor:
        return contradicted(p, labels)

    def theirs() -> Any:
        return compute_confident_joint(*arrays, return_indices_of_off_diagonals=True)

    if ours().nonzero().squeeze(1).tolist() != sorted(theirs()[1]):
        raise RuntimeError("The two filters disagree on this batch; their times mean nothing.")
    return ours, theirs


def seconds(call: Call, repeats: int) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(size: int, classes: int, rounds: int, repeats: int, seed: int) -> dict[str, float]:
    """Return the median time of each, and the median over rounds of their ratio."""
    ours, theirs = contenders(size, classes, seed)
    for call in (ours, theirs):
        seconds(call, repeats)
    turns = [(seconds(ours, repeats), seconds(theirs, repeats)) for _ in range(rounds)]
    return {
        "batch": size,
        "classes": classes,
        "metaweight µs": 1e6 * statistics.median(mine for mine, _ in turns),
        "cleanlab µs": 1e6 * statistics.median(other for _, other in turns),
        "ratio": statistics.median(other / mine for mine, other in turns),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=20, help="calls in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for confident_joint.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    row = measure(options.batch, options.classes, options.rounds, options.repeats, options.seed)
    print(
        f"batch {options.batch}, {options.classes} classes: metaweight "
        f"{row['metaweight µs']:.0f} µs, cleanlab {row['cleanlab µs']:.0f} µs, "
        f"{row['ratio']:.1f} times as fast"
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        report = {"environment": environment(options.threads), "rows": [row]}
        text = json.dumps(report, indent=2, ensure_ascii=False)
        (options.out / "confident_joint.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
