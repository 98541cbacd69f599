"""Time of a step, against peers, taking turns on one machine.

::

    python benchmarks/speed.py                      # all workloads
    python benchmarks/speed.py --workload toy
    python benchmarks/speed.py --workload resnet32 --check   # also the hypergradients' accuracy
    python benchmarks/speed.py --workload resnet32 --device cuda
    python benchmarks/speed.py --grow all           # how the cost grows
    python benchmarks/speed.py --grow batch --grow-on resnet32

=================  ==============================================================================
``resnet32``       a Meta-Weight-Net step, batches of 100 for the lower and the upper loss
``resnet32_exact`` the same for those that differentiate through the step exactly
``compiled``       the same with ``torch.compile``
``mlp``            hyper-cleaning, a weight for each sample, on one hidden layer
``transformer``    a Meta-Weight-Net step of a small text classifier with attention
``mean_teacher``   WRN-28-2 with labelled and unlabelled images
``three_level``    weights of a teacher's samples, learned through its student
``unroll10``       ten steps of the MLP for each of the upper problem
``toy``            logistic regression with 20 learned penalties: the library's own work
=================  ==============================================================================

Every contender gets the same tensors and a process of its own, so that none profits from memory
another has warmed up; in each round all of them step in turn while the others sleep, so that a
machine whose speed drifts slows all alike. Medians, spread, ratios and peak memory are printed and
written as JSON, Markdown and a figure: ``speed.*``, and ``growth.*`` for ``--grow``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from devices import DEVICES
from speed_contenders import PLAIN
from speed_growth import grown, growths, lines_of
from speed_report import Row, table
from speed_resnet32 import resnet32_contenders
from speed_workloads import ON_A_CARD, Workload, measured, workloads
from turns import environment, markdown

from metaweight import Engine


def checked(size: int, threads: int, device: str = "cpu") -> list[Row]:
    """Return the errors of metaweight's hypergradients on ResNet-32 against double precision.

    Each is compared with the same product in double precision with a short displacement, after 3
    steps.
    """
    torch.set_num_threads(threads)
    rows: list[Row] = []
    for name, make in resnet32_contenders(size, device).items():
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


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=[*workloads(), "all"], help="default: all")
    parser.add_argument("--grow", choices=[*growths(), "all"], help="alone unless --workload")
    parser.add_argument("--grow-on", choices=["mlp", "resnet32"], default="mlp", help="for batch")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--threads", type=int, help="instead of each workload's own")
    parser.add_argument("--batch-size", type=int, default=100, help="of the resnet32 workloads")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--check", action="store_true", help="also check resnet32's hypergradients")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    arguments = parser.parse_args(given)
    if arguments.workload is None and arguments.grow is None:
        arguments.workload = "all"
    check_device(parser, arguments)
    return arguments


def check_device(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse a card where there is none, and what is measured on the processor alone."""
    if arguments.device == "cpu":
        return
    if not torch.cuda.is_available():
        parser.error(f"argument --device: {arguments.device} was asked for, but torch sees no GPU")
    if arguments.grow is not None:
        parser.error("argument --grow: is measured on the CPU alone; leave out --device")
    if arguments.workload not in ("all", *ON_A_CARD):
        parser.error(
            f"argument --workload: {arguments.workload} is measured on the CPU alone; on a card "
            f"use {', '.join(ON_A_CARD)}"
        )


def asked_for(name: str | None, known: Sequence[str]) -> list[str]:
    """Return the names that a choice selects."""
    return list(known) if name == "all" else [] if name is None else [name]


def chosen(arguments: argparse.Namespace) -> list[Workload]:
    """Return the workloads asked for."""
    known = workloads(arguments.batch_size)
    if arguments.device != "cpu":
        known = {name: known[name] for name in ON_A_CARD}
    return [
        workload.with_effort(arguments.rounds, arguments.threads).on(arguments.device)
        for name in asked_for(arguments.workload, list(known))
        for workload in known[name]
    ]


def write(report: dict[str, Any], out: Path, name: str) -> None:
    """Write the measurements so far as JSON and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=2))
    text = [markdown(found["rows"], heading(title, found)) for title, found in report.items()]
    (out / f"{name}.md").write_text("\n\n".join(text) + "\n")


def measured_before(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the record holds of workloads that are not asked for now."""
    path = arguments.out / "speed.json"
    if arguments.workload == "all" or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def heading(title: str, found: dict[str, Any]) -> str:
    """Return the heading of a table, with the environment of its numbers."""
    details = ", ".join(f"{name}: {value}" for name, value in found["environment"].items())
    return f"{title} ({details})"


def compare(arguments: argparse.Namespace) -> None:
    """Measure the workloads asked for."""
    # Imported here: every contender's process imports this script, and none needs matplotlib.
    from speed_figures import ratio_bars

    report = measured_before(arguments)
    bars: dict[str, tuple[str, list[Row]]] = {}
    for workload in chosen(arguments):
        rows = table(measured(workload), workload.base, workload.lower_steps)
        found: dict[str, Any] = {
            "environment": environment(workload.threads, workload.device),
            "rows": rows,
        }
        report[workload.title], bars[workload.title] = found, (workload.base, rows)
        print(markdown(rows, heading(workload.title, found)), end="\n\n", flush=True)
        write(report, arguments.out, "speed")
    if bars:
        ratio_bars(bars).savefig(arguments.out / "speed.png", dpi=150)
    if arguments.check:
        threads = arguments.threads or 2
        found = {
            "environment": environment(threads, arguments.device),
            "rows": checked(arguments.batch_size, threads, arguments.device),
        }
        report["hypergradients"] = found
        title = "resnet32, hypergradients against double precision"
        print(markdown(found["rows"], heading(title, found)))
        write(report, arguments.out, "speed")


def grow(arguments: argparse.Namespace) -> None:
    """Measure the kinds of growth asked for."""
    from speed_figures import growth_lines

    known = growths(arguments.grow_on)
    report: dict[str, Any] = {}
    for kind in asked_for(arguments.grow, list(known)):
        rows = grown(known[kind], arguments.rounds, arguments.threads)
        report[kind] = {
            "label": known[kind].label,
            "environment": environment(arguments.threads or 1),
            "rows": rows,
        }
        print(markdown(rows, heading(kind, report[kind])), end="\n\n", flush=True)
        write(report, arguments.out, "growth")
    if report:
        growth_lines(lines_of(report), PLAIN).savefig(arguments.out / "growth.png", dpi=150)


def main(given: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""
    arguments = parse(given)
    compare(arguments)
    grow(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
