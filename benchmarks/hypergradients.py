"""Accuracy and cost of hypergradients, against peers.

::

    python benchmarks/hypergradients.py                             # all tasks
    python benchmarks/hypergradients.py --task ridge --task logistic
    python benchmarks/hypergradients.py --task resnet32 --steps 1 8
    python benchmarks/hypergradients.py --task transformer

``quadratic``, ``ridge``, ``logistic`` and ``cleaning`` are small problems whose true hypergradient
is known: every method of metaweight and its peers, its relative error and cosine, time and memory,
and for iterative methods the error over iterations. ``resnet32`` and ``transformer`` differentiate
through the steps of a network under learned sample weights. Every contender has a process of its
own; they take turns. A method that fails has a row with the first line of its error.
The small tasks take a few minutes, the networks about 20 each alone on 2 cores.

A method that uses the identity as the inverse Hessian has another scale than the truth, so that
only its cosine counts; so has one that leaves the learning rate out.

Written to ``--out``: ``hypergradients.json`` and ``.md``, ``curves.png``,
``memory-NETWORK.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypergradient_tasks import small, unrolled_networks
from study.files import write_figure, write_text
from turns import environment, markdown

TASKS = (*small.CASES, *unrolled_networks.EFFORTS)


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, action="append", help="repeatable; default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke test of less than a minute")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--steps", type=int, nargs="+", help="numbers of steps of a network")
    parser.add_argument("--lr", type=float, help="learning rate of a network")
    parser.add_argument("--threads", type=int, default=2, help="of a network; small tasks take one")
    parser.add_argument("--out", type=Path, default=Path("results/hypergradients"))
    return parser.parse_args(given)


def run(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one task."""
    network = task in unrolled_networks.EFFORTS
    threads = arguments.threads if network else 1
    load = os.getloadavg()[0]
    if network:
        efforts = unrolled_networks.QUICK if arguments.quick else unrolled_networks.EFFORTS
        chosen = {"threads": threads, "rounds": arguments.rounds, "lr": arguments.lr}
        chosen["steps"] = tuple(arguments.steps) if arguments.steps else None
        found = unrolled_networks.run(
            replace(efforts[task], **{name: v for name, v in chosen.items() if v is not None})
        )
    else:
        little = small.QUICK if arguments.quick else small.Effort()
        found = small.run(task, replace(little, rounds=arguments.rounds or little.rounds))
    loads = f"{load:.2f} before, {os.getloadavg()[0]:.2f} after"
    return {"environment": {**environment(threads), "load average": loads}, **found}


def text(task: str, found: dict[str, Any]) -> str:
    """Return a task's results as Markdown."""
    parts = [markdown(found["rows"], task)]
    for key in ("description", "environment"):
        parts.append(", ".join(f"{name}: {value}" for name, value in found[key].items()))
    if found.get("claims"):
        parts.append(markdown(found["claims"], f"{task}, what is claimed"))
    return "\n\n".join(parts)


def write(report: dict[str, dict[str, Any]], out: Path) -> None:
    """Write everything measured so far."""
    # Imported here: every contender's process imports this script, and none needs matplotlib.
    from hypergradient_tasks.figures import error_curves, memory_curves

    write_text(out / "hypergradients.json", json.dumps(report, indent=2, allow_nan=False))
    tables = "\n\n".join(text(task, found) for task, found in report.items())
    write_text(out / "hypergradients.md", f"{tables}\n")
    curves = {task: found["curves"] for task, found in report.items() if found.get("curves")}
    if curves:
        write_figure(out / "curves.png", error_curves(curves))
    for network in unrolled_networks.EFFORTS:
        if network in report:
            figure = memory_curves(report[network]["rows"])
            write_figure(out / f"memory-{network}.png", figure)


def main(given: Sequence[str] | None = None) -> int:
    """Measure the tasks asked for."""
    arguments = parse(given)
    report: dict[str, dict[str, Any]] = {}
    for task in arguments.task or TASKS:
        report[task] = run(task, arguments)
        print(text(task, report[task]), flush=True)
        write(report, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
