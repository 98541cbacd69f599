"""Speed-up by a second process, measured, and by many processes, from a model.

::

    python benchmarks/scaling.py                       # ResNet-32, then a short step of an MLP
    python benchmarks/scaling.py --workload mlp --batch 400
    python benchmarks/scaling.py --memory              # peak memory of a process, sharded or not

A Meta-Weight-Net step is timed in one process, in two that train together (gloo on this machine),
and in two that do not communicate; each has a core and a batch of its own. The efficiency is the
time of one process over that of two: without communication it shows the loss of this machine by
running two processes at all, and the difference to it the cost of communication.

The model for more than two uses the compute time ``T`` of one process, and from the program itself
the number of reductions per step, ``k``, and their bytes, ``b``. With ``P`` machines of one process
each ::

    step = T + k · 2 (P - 1) · latency + 2 (P - 1) / P · b / bandwidth

which assumes a ring all-reduce that does not overlap with computation, as is the case here, the
same batch size in every process, and machines of equal speed. A program with synchronised batch
norm, or other products, has other ``k`` and ``b``, which the script counts in the running program.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from study.files import write_text
from torch import nn
from turns import environment, markdown

from metaweight import Config, Engine, EngineConfig
from metaweight.models import ResNet32
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

STEPS = {"resnet32": 3, "mlp": 50, "deep": 4}
"""Timed steps of a turn."""
BATCHES = {"resnet32": 50, "mlp": 200, "deep": 50}
"""Samples of each level a process."""
SIZES = {"resnet32": (3, 32, 32), "mlp": (64,), "deep": (1024,)}
"""Shape of an input."""


class Network(NamedTuple):
    """Latency and bandwidth of a network between machines."""

    name: str
    bandwidth: float
    """Bytes a second."""
    latency: float
    """Seconds a hop."""


NETWORKS = (
    Network("10 Gbit/s Ethernet", 1.1e9, 30e-6),
    Network("100 Gbit/s InfiniBand", 11e9, 5e-6),
    Network("NVLink in one machine", 200e9, 3e-6),
)
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
MACHINES = (2, 4, 8, 16, 64)
CASES = {"one process": (1, "cpu"), "two together": (2, "distributed"), "two apart": (2, "cpu")}
"""Number of processes and strategy."""
Row = dict[str, Any]
Tables = dict[str, list[Row]]


def program(workload: str, batch: int, strategy: str) -> Engine:
    """Return Meta-Weight-Net on random images, or on random vectors."""
    torch.manual_seed(0)
    size = SIZES[workload]
    net = {"resnet32": ResNet32, "mlp": mlp, "deep": deep}[workload]()
    weights = MetaWeightNet()
    data = [(torch.randn(batch, *size), torch.randint(0, 10, (batch,))) for _ in range(2)]
    low = WeightedClassifier(
        "classifier",
        weights="reweight",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        train_data_loader=data[:1],
    )
    top = WeightLearner(
        "reweight",
        classifier="classifier",
        config=Config(),
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), 1e-5),
        train_data_loader=data[1:],
    )
    graph = {"u2l": {top: [low]}, "l2u": {low: [top]}}
    config = EngineConfig(strategy=strategy, backend="gloo")
    return Engine([top, low], config, graph)


def mlp() -> nn.Module:
    """Return a network whose step is short, so that communication shows."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def deep() -> nn.Module:
    """Return a network of 67 MB of parameters in 16 blocks."""
    blocks = [nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(16)]
    return nn.Sequential(*blocks, nn.Linear(1024, 10))


def worker(workload: str, batch: int, steps: int, strategy: str) -> None:
    """Step one process and print what it took as JSON."""
    torch.set_num_threads(1)
    # Modules and threads that come with the first steps of any program are in memory before.
    warm = program("mlp", batch, strategy)
    for _ in range(2):
        warm.train_step()
    del warm
    gc.collect()
    before_program = resident("VmRSS")
    engine = program(workload, batch, strategy)
    taken = []
    for number in range(steps + 2):
        before = counted(engine)
        begun = time.perf_counter()
        engine.global_step += 1
        engine.train_step()
        if number >= 2:
            taken.append(time.perf_counter() - begun)
    after = counted(engine)
    print(
        json.dumps(
            {
                "seconds": statistics.median(taken),
                "reductions": after[0] - before[0],
                "bytes": after[1] - before[1],
                "peak_mb": resident("VmHWM") - before_program,
                "parameters": sum(p.numel() for p in engine.classifier.parameters()),
            }
        )
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def resident(which: str) -> float:
    """Return the process's resident memory in MB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) / 1024


def counted(engine: Engine) -> tuple[int, int]:
    """Return the reductions so far and their bytes."""
    processes: Any = engine.processes
    return getattr(processes, "reductions", 0), getattr(processes, "bytes", 0)


def started(
    arguments: Sequence[str], number: int, strategy: str, **settings: str
) -> dict[str, Any]:
    """Run workers concurrently and return the slowest one's measurements, with the largest peak.

    ``settings`` are variables of their environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, *arguments, "--worker"]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    workers = []
    for rank in range(number):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), **address}
        workers.append(
            subprocess.Popen(
                [*command, "--strategy", strategy],
                env={**os.environ, **({} if strategy == "cpu" else place), **settings},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate()[0] for process in workers]
    if any(process.returncode for process in workers):
        raise SystemExit("A worker failed; its error is above.")
    found = [json.loads(text.splitlines()[-1]) for text in said]
    slowest: dict[str, Any] = max(found, key=lambda each: each["seconds"])
    return {**slowest, "peak_mb": max(each["peak_mb"] for each in found)}


def modelled(alone: float, reductions: int, size: int) -> list[Row]:
    """Return the efficiencies of many machines by the formula above."""
    rows = []
    for network, machines in product(NETWORKS, MACHINES):
        hops = reductions * 2 * (machines - 1) * network.latency
        sent = 2 * (machines - 1) / machines * size / network.bandwidth
        efficiency = alone / (alone + hops + sent)
        rows.append({"contender": network.name, "at": machines, "efficiency": efficiency})
    return rows


def measured(workload: str, options: argparse.Namespace) -> Tables:
    """Measure the three cases of a workload in turn: a row each of medians, and the model's."""
    batch = options.batch or BATCHES[workload]
    arguments = ["--workload", workload, "--batch", str(batch)]
    arguments += ["--steps", str(options.steps or STEPS[workload])]
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    talk: dict[str, Mapping[str, Any]] = {}
    for _ in range(options.rounds):
        for name, (number, strategy) in CASES.items():
            found = started(arguments, number, strategy)
            seconds[name].append(found["seconds"])
            talk[name] = found
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    alone = medians["one process"]
    rows: list[Row] = [
        {
            "contender": name,
            "ms a step": 1e3 * value,
            "samples a second": CASES[name][0] * batch / value,
            "efficiency": alone / value,
            **{key: talk[name][key] for key in ("reductions", "bytes", "parameters")},
        }
        for name, value in medians.items()
    ]
    together = talk["two together"]
    more = modelled(alone, together["reductions"], together["bytes"])
    return {workload: rows, f"{workload}, more machines": more}


def memory(options: argparse.Namespace) -> Tables:
    """Return the peak resident memory of a process beyond what it had before its program.

    What is freed goes back to the system at once; else glibc keeps blocks in use by no tensor, of
    which the gathered ones of FSDP leave many (437 to 524 MB in the place of 177).
    """
    arguments = ["--workload", "deep", "--batch", str(options.batch or BATCHES["deep"])]
    cases = [(1, "cpu"), (2, "distributed"), (2, "zero"), (2, "fsdp")]
    rows: list[Row] = []
    for number, strategy in cases:
        words = [*arguments, "--steps", str(STEPS["deep"])]
        found = [started(words, number, strategy, **RETURNED) for _ in range(options.rounds)]
        rows.append(
            {
                "contender": f"{strategy}, {number}",
                "peak MB a process": statistics.median(f["peak_mb"] for f in found),
                "ms a step": 1e3 * statistics.median(f["seconds"] for f in found),
            }
        )
    return {"memory": rows}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", choices=tuple(STEPS), help="default: resnet32 and mlp")
    parser.add_argument("--batch", type=int, help="samples of each level a process")
    parser.add_argument("--steps", type=int, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/scaling"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help="peak memory of a process instead")
    parser.add_argument("--strategy", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.workload, options.batch, options.steps, options.strategy)
        return
    tables: Tables = {}
    if options.memory:
        tables |= memory(options)
    else:
        for workload in [options.workload] if options.workload else ("resnet32", "mlp"):
            tables |= measured(workload, options)
    text = "\n\n".join(markdown(rows, title) for title, rows in tables.items())
    print(text)
    name = "memory" if options.memory else "scaling"
    found = {title: {"environment": environment(1), "rows": rows} for title, rows in tables.items()}
    write_text(options.out / f"{name}.json", json.dumps(found, indent=2))
    write_text(options.out / f"{name}.md", f"{text}\n")


if __name__ == "__main__":
    main()
