"""How long a step takes, against peers, taking turns on one machine.

::

    python benchmarks/speed.py                 # both workloads
    python benchmarks/speed.py --workload toy

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
import logging
import multiprocessing
import platform
import resource
import statistics
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from speed_resnet32 import resnet32_contenders
from speed_toy import toy_contenders

import metaweight

Workload = tuple[str, int]
"""``("resnet32", batch size)`` or ``("toy", unroll steps)``."""


class Turn(NamedTuple):
    """What one turn of a contender measured."""

    wall: float
    """Seconds a step."""
    cpu: float
    """Seconds of all threads together a step; less touched by what else the machine does."""
    peak: float
    """Peak memory of the process so far, MiB."""


def contenders_of(workload: Workload) -> dict[str, object]:
    """Return the makers of a workload's contenders by name."""
    kind, number = workload
    return dict(resnet32_contenders(number) if kind == "resnet32" else toy_contenders(number))


def serve(workload: Workload, name: str, threads: int, steps: int, connection: Connection) -> None:
    """Step one contender whenever asked; answer with wall and CPU seconds a step, peak memory."""
    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    make = contenders_of(workload)[name]
    step = make()  # type: ignore[operator]
    for _ in range(2):
        step()
    connection.send("ready")
    while connection.recv():
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - start) / steps
        cpu = (time.process_time() - start_cpu) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        connection.send(Turn(seconds, cpu, peak))


def measure(workload: Workload, threads: int, rounds: int, steps: int) -> dict[str, list[Turn]]:
    """Return what every contender measured, a turn for each round."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    workers = []
    for name in contenders_of(workload):
        ours, theirs = context.Pipe()
        worker = context.Process(
            target=serve, args=(workload, name, threads, steps, theirs), daemon=True
        )
        worker.start()
        ours.recv()
        lines[name] = ours
        workers.append(worker)
    turns: dict[str, list[Turn]] = {name: [] for name in lines}
    names = list(lines)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            lines[name].send(True)
            turns[name].append(lines[name].recv())
    for name, worker in zip(names, workers, strict=True):
        lines[name].send(False)
        worker.join()
    return turns


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


def markdown(rows: list[dict[str, float | str]], title: str) -> str:
    """Return the rows as a Markdown table."""
    keys = list(rows[0])
    lines = [f"### {title}", "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [v if isinstance(v, str) else f"{v:.4g}" for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment(threads: int) -> dict[str, str | int]:
    """Return what the numbers depend on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    return {
        "processor": processor,
        "threads": threads,
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
    workloads: list[tuple[Workload, str, int, int, int]] = []
    if arguments.workload in ("resnet32", "all"):
        size = arguments.batch_size
        workloads.append((("resnet32", size), "plain step", arguments.threads, 11, 1))
    if arguments.workload in ("toy", "all"):
        workloads += [(("toy", unroll), "hand-written", 1, 15, 400) for unroll in (1, 100)]
    report: dict[str, object] = {}
    text = []
    for workload, base, threads, rounds, steps in workloads:
        rows = table(measure(workload, threads, arguments.rounds or rounds, steps), base)
        title = f"{workload[0]} {workload[1]}"
        report[title] = {"environment": environment(threads), "rows": rows}
        text.append(markdown(rows, f"{title} ({environment(threads)})"))
    print("\n\n".join(text))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "speed.json").write_text(json.dumps(report, indent=2))
    (arguments.out / "speed.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
