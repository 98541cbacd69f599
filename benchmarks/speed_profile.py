"""Where the time of a step goes: passes of the ResNet-32 step, Python calls of the toy step.

::

    python benchmarks/speed_profile.py

The passes of a Meta-Weight-Net step are also measured alone, taking turns in one process: what is
left over is the library. Calls are counted by ``cProfile``, per step and by who made them; it slows
Python but not torch's kernels, so its times are not given.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from speed_resnet32 import Batches, on_betty, ours, parts, plain
from speed_toy import hand_written, on_metaweight
from speed_toy import on_betty as toy_on_betty
from turns import Step, environment, markdown

from metaweight import Config

Row = dict[str, float | str]
CALLS = 300
ORIGINS = ("of torch", "of the library", "of the program", "built into Python")


def passes(batches: Batches) -> dict[str, Step]:
    """Return the passes a step is made of, and steps made of them."""
    net, _, _, _ = parts()
    parameters = list(net.parameters())

    def losses() -> torch.Tensor:
        return F.cross_entropy(net(batches.x), batches.y, reduction="none")

    def without_graph() -> None:
        with torch.no_grad():
            losses()

    def forward_and_backward() -> None:
        torch.autograd.grad(losses().mean(), parameters)

    return {
        "plain step: forward, backward, SGD": plain(batches),
        "forward and backward, as of the upper level": forward_and_backward,
        "forward with a graph": losses,
        "forward without a graph": without_graph,
        "metaweight, native": ours(batches, Config()),
        "betty-ml": on_betty(batches),
    }


def of_passes(size: int, rounds: int, threads: int) -> list[Row]:
    """Return the time of each pass of the ResNet-32 step, and what is left over of ours."""
    torch.set_num_threads(threads)
    steps = passes(Batches(size))
    found = {name: [_seconds(step) for _ in range(2)][1:] for name, step in steps.items()}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(_seconds(step))
    times = {name: statistics.median(values[1:]) for name, values in found.items()}
    base, upper, _, free, whole, _ = times.values()
    times["metaweight, native, less a plain step, the upper pass and two without a graph"] = (
        whole - base - upper - 2 * free
    )
    return [
        {"what": name, "ms": seconds * 1e3, "plain steps": seconds / base}
        for name, seconds in times.items()
    ]


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def of_calls() -> list[Row]:
    """Return how many Python calls a toy step makes, by who makes them."""
    torch.set_num_threads(1)
    makes = {"hand-written": hand_written, "metaweight": on_metaweight, "betty-ml": toy_on_betty}
    return [{"program": name, **_calls(make(1))} for name, make in makes.items()]


def _calls(step: Step) -> dict[str, float]:
    for _ in range(20):
        step()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(CALLS):
        step()
    profile.disable()
    found: Counter[str] = Counter()
    for (file, _, _), (_, calls, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        found[_origin(file)] += calls
    return {origin: found[origin] / CALLS for origin in ORIGINS}


def _origin(file: str) -> str:
    path = Path(file)
    if "torch" in path.parts:
        return ORIGINS[0]
    if path.name == "speed_toy.py":
        return ORIGINS[2]
    if "betty" in path.parts or {"problems", "engines"} & set(path.parts):
        return ORIGINS[1]
    return ORIGINS[3]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    given = parser.parse_args()
    logging.disable(logging.INFO)
    tables = {
        "passes of a ResNet-32 step": of_passes(given.batch_size, given.rounds, given.threads),
        "Python calls of a toy step": of_calls(),
    }
    text = [markdown(rows, title) for title, rows in tables.items()]
    print("\n\n".join(text))
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment(given.threads), "tables": tables}
    (given.out / "profile.json").write_text(json.dumps(report, indent=2))
    (given.out / "profile.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
