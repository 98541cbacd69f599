"""How long a step takes, against peers, taking turns on one machine.

::

    python benchmarks/speed.py                 # both workloads
    python benchmarks/speed.py --workload toy
    python benchmarks/speed.py --workload resnet32 --check   # also how right the hypergradients are

``resnet32``: one Meta-Weight-Net step (a batch of 100 to train on, 100 to judge by, single
precision). ``toy``: logistic regression with 20 learned penalties, where the library's own work is
what one sees. Every contender gets the same tensors and a process of its own, so that none profits
from memory another has warmed up; in each round all of them step in turn while the others sleep, so
that a machine whose speed drifts slows all alike. Medians, spread, ratios and peak memory are
printed and written as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import torch
from speed_resnet32 import resnet32_contenders
from speed_toy import toy_contenders
from turns import Make, Step, Turn, environment, markdown, measure

from metaweight import Engine

Workload = tuple[str, int]
"""``("resnet32", batch size)`` or ``("toy", unroll steps)``."""


def contenders_of(workload: Workload) -> dict[str, object]:
    """Return the makers of a workload's contenders by name."""
    kind, number = workload
    return dict(resnet32_contenders(number) if kind == "resnet32" else toy_contenders(number))


def make_contender(workload: Workload, name: str) -> Step:
    """Return one contender's step."""
    make: Make = contenders_of(workload)[name]  # type: ignore[assignment]
    return make()


def measure_workload(
    workload: Workload, threads: int, rounds: int, steps: int
) -> dict[str, list[Turn]]:
    """Return what every contender measured, a turn for each round.

    Raises:
        RuntimeError: When a contender failed.
    """
    makes = {name: partial(make_contender, workload, name) for name in contenders_of(workload)}
    outcomes = measure(makes, threads, rounds, steps)
    for name, outcome in outcomes.items():
        if outcome.error is not None:
            raise RuntimeError(f"{name}: {outcome.error}")
    return {name: outcome.turns for name, outcome in outcomes.items()}


def table(turns: dict[str, list[Turn]], base: str) -> list[dict[str, float | str]]:
    """Return per contender medians, quartiles, median per-round ratios to ``base``, memory."""
    rows: list[dict[str, float | str]] = []
    for name, own in turns.items():
        low, middle, high = statistics.quantiles([turn.wall for turn in own], n=4)
        pairs = list(zip(own, turns[base], strict=True))
        rows.append(
            {
                "contender": name,
                "median ms": middle * 1e3,
                "quartiles ms": f"{low * 1e3:.4g} – {high * 1e3:.4g}",
                f"times {base}": statistics.median(a.wall / b.wall for a, b in pairs),
                f"CPU times {base}": statistics.median(a.cpu / b.cpu for a, b in pairs),
                "peak MiB": own[-1].peak,
            }
        )
    return rows


def checked(size: int, threads: int) -> list[dict[str, float | str]]:
    """Return how close metaweight's hypergradients on ResNet-32 are to double precision.

    Each against the same product in double precision with a short displacement, after 3 steps.
    """
    torch.set_num_threads(threads)
    rows: list[dict[str, float | str]] = []
    for name, make in resnet32_contenders(size).items():
        engine = getattr(make(), "__self__", None) if name.startswith("metaweight") else None
        if isinstance(engine, Engine):
            for _ in range(3):
                engine.train_step()
            (report,) = engine.check_hypergradient()
            found = report.converged
            rows.append(
                {
                    "contender": name,
                    "cosine": found.cosine,
                    "norm ratio": found.norm_ratio,
                    "relative error": found.relative_error,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=["resnet32", "toy", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=None, help="turns of every contender")
    parser.add_argument("--threads", type=int, default=2, help="threads of the resnet32 workload")
    parser.add_argument("--batch-size", type=int, default=100, help="of the resnet32 workload")
    parser.add_argument("--check", action="store_true", help="also check resnet32's hypergradients")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    arguments = parser.parse_args()
    workloads: list[tuple[Workload, str, int, int, int]] = []
    if arguments.workload in ("resnet32", "all"):
        size = arguments.batch_size
        workloads.append((("resnet32", size), "plain step", arguments.threads, 11, 1))
    if arguments.workload in ("toy", "all"):
        workloads += [(("toy", unroll), "hand-written", 1, 15, 400) for unroll in (1, 100)]
    report: dict[str, object] = {}
    text = []
    for workload, base, threads, rounds, steps in workloads:
        rows = table(measure_workload(workload, threads, arguments.rounds or rounds, steps), base)
        title = f"{workload[0]} {workload[1]}"
        report[title] = {"environment": environment(threads), "rows": rows}
        text.append(markdown(rows, f"{title} ({environment(threads)})"))
    if arguments.check:
        rows = checked(arguments.batch_size, arguments.threads)
        report["hypergradients"] = {"rows": rows}
        text.append(markdown(rows, "resnet32, hypergradients against double precision"))
    print("\n\n".join(text))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "speed.json").write_text(json.dumps(report, indent=2))
    (arguments.out / "speed.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
