"""Profile of a step's time: passes of the ResNet-32 step, calls and parts of small steps.

::

    python benchmarks/speed_profile.py

The passes of a Meta-Weight-Net step are also measured alone, taking turns in one process: the
remaining time is that of the library. For small steps, whose time is that of Python, Python's calls
are counted by ``cProfile``, per step and by the library that made them, and torch's operations by
its profiler; times are those of steps without either. Parts of a step of three levels are timed
alone.
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
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from metaweight.problems.base.displacement import Displacement
from speed_resnet32 import Batches, on_betty, ours, parts, plain
from speed_three_level import Levels, lower_optimizer, meta_adam, three_level_contenders
from speed_toy import toy_contenders
from torch.profiler import ProfilerActivity, profile
from turns import Step, environment, markdown

from metaweight import Config

Row = dict[str, float | str]
# One level has nothing but a plain step, which is written by hand; three do not have it.
APART = (("one level", "hand-written"), ("three levels", "plain step"))
ORIGINS = ("of torch", "of the library", "of the program", "built into Python")


def passes(batches: Batches) -> dict[str, Step]:
    """Return the passes that a step consists of, and whole steps."""
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
    """Return the time of each pass of the ResNet-32 step, and the remainder of our step."""
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


def of_small_steps(rounds: int) -> list[Row]:
    """Return times of small steps, their torch operations, and Python calls by their origin."""
    torch.set_num_threads(1)
    programs = {
        "toy": toy_contenders(1),
        "three levels": three_level_contenders(),
        "one level": three_level_contenders(levels=1),
    }
    rows: list[Row] = []
    for program, makes in programs.items():
        steps = {name: make() for name, make in makes.items() if (program, name) not in APART}
        times = _in_turn(steps, rounds)
        rows += [
            {
                "program": program,
                "on": name,
                "ms": times[name] * 1e3,
                "operations": _operations(step),
                **_calls(step, rounds * 30),
            }
            for name, step in steps.items()
        ]
    return rows


def of_parts(rounds: int) -> list[Row]:
    """Return times of the parts of a three-level step other than its passes."""
    torch.set_num_threads(1)
    modules = Levels().modules()
    weights = list(modules.networks[0].parameters())
    shift = [1e-6 * torch.randn_like(p) for p in weights]
    for parameter in (*weights, *modules.weights.parameters()):
        parameter.grad = torch.randn_like(parameter)

    def put_back() -> None:
        with Displacement(weights) as displaced:
            displaced.move(shift)
            displaced.move(shift, -2.0)

    def moved_back() -> None:
        for times in (1.0, -2.0, 1.0):
            torch._foreach_add_([p.data for p in weights], shift, alpha=times)

    parts = {
        "parameters displaced, and put back exactly": put_back,
        "the same, moved back": moved_back,
        "SGD with momentum": lower_optimizer(modules.networks[0]).step,
        "the same, fused": torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True).step,
        "Adam of the weight network": meta_adam(modules.weights.parameters()).step,
        "the same, fused ": torch.optim.Adam(modules.weights.parameters(), fused=True).step,
    }
    found = _in_turn(parts, rounds)
    return [{"what": name.strip(), "µs": seconds * 1e6} for name, seconds in found.items()]


def _in_turn(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each step, while they take turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(rounds * 3):
            step()
    for _ in range(rounds * 10):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(10):
                step()
            found[name].append((time.perf_counter() - start) / 10)
    return {name: statistics.median(values) for name, values in found.items()}


def _operations(step: Step) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    return len(seen.events())


def _calls(step: Step, number: int) -> dict[str, float]:
    watched = cProfile.Profile()
    watched.enable()
    for _ in range(number):
        step()
    watched.disable()
    found: Counter[str] = Counter()
    for (file, _, _), (_, calls, *_) in pstats.Stats(watched).stats.items():  # type: ignore[attr-defined]
        found[_origin(file)] += calls
    return {origin: found[origin] / number for origin in ORIGINS}


def _origin(file: str) -> str:
    path = Path(file)
    if "torch" in path.parts:
        return ORIGINS[0]
    if path.name in ("speed_toy.py", "speed_three_level.py"):
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
        "small steps": of_small_steps(given.rounds),
        "parts of a step of three levels": of_parts(given.rounds),
    }
    text = [markdown(rows, title) for title, rows in tables.items()]
    print("\n\n".join(text))
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment(given.threads), "tables": tables}
    (given.out / "profile.json").write_text(json.dumps(report, indent=2))
    (given.out / "profile.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
