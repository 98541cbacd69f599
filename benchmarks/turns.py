"""Contenders that take turns on one machine, each in a process of its own.

In each round every contender steps in turn while the others sleep, so that a machine whose speed
drifts slows all alike. Each has its own process, so that none profits from memory another has
warmed up, and peak memory is its own. A contender that fails is reported, and the others continue.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from devices import described, held_memory, most_memory, synchronise

import metaweight

Step = Callable[[], Any]
Make = Callable[[], Step]
"""Called in the contender's process; must be picklable."""

Given = TypeVar("Given")

SHORTEST_TURN = 0.1
M_MMAP_THRESHOLD = -3
MIB = 2**20
MOST_STEPS = 200
PEERS = ("betty-ml", "higher", "torchopt", "jax", "boat-torch")


class Turn(NamedTuple):
    """Measurements of one turn of a contender."""

    wall: float
    """Seconds a step."""
    cpu: float
    """CPU seconds of all threads per step; less sensitive to other load on the machine."""
    peak: float
    """Peak memory of the process so far, or of what it has on a card, MiB."""


@dataclass
class Outcome:
    """Measurements of a contender, or its error.

    Attributes:
        value: The value its first step returned.
        resting: Memory before the first step, MiB: of its process, or of its tensors on a card.
        first_peak: Peak memory after the first step, MiB.
        turns: A turn for each round.
        error: The first line of its error.
    """

    value: Any = None
    resting: float = 0.0
    first_peak: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    error: str | None = None


def later(make: Callable[[Given], Step], given: Callable[[], Given]) -> Make:
    """Return a maker of a step of ``given()``, which is called only when the step is made."""
    return lambda: make(given())


def measure(
    makes: Mapping[str, Make],
    threads: int,
    rounds: int,
    steps: int | None,
    *,
    warm_ups: int = 2,
    start: str = "spawn",
    returns_memory: bool = False,
    device: str = "cpu",
) -> dict[str, Outcome]:
    """Return the measurements of every contender.

    Args:
        makes: The makers of the contenders' steps, by name.
        threads: Threads of each contender.
        rounds: Turns of each contender.
        steps: Steps of a turn; as many as fill 0.1 s when left out.
        warm_ups: Steps before the first turn.
        start: How processes are started; ``"forkserver"`` shares the imports.
        returns_memory: Let glibc return freed arrays of a MiB and more to the system, so that the
            peak counts live memory and not what the allocator keeps. Slower, by page faults.
        device: ``"cuda"``: turns end when the card has done its work, and memory is the card's.
    """
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        # These imports take seconds; the first optimizer of a process imports torch._dynamo.
        context.set_forkserver_preload(["metaweight.weighting", "torch._dynamo"])
    outcomes: dict[str, Outcome] = {}
    lines: dict[str, Connection] = {}
    workers: dict[str, Any] = {}
    for name, make in makes.items():
        ours, theirs = context.Pipe()
        arguments = (make, threads, steps, warm_ups, returns_memory, device, theirs)
        workers[name] = context.Process(target=_serve, args=arguments, daemon=True)
        workers[name].start()
        theirs.close()
        lines[name] = ours
        answer = _answer(ours, workers[name])
        outcomes[name] = answer if isinstance(answer, Outcome) else Outcome(error=answer)
    names = list(makes)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if outcomes[name].error is None:
                lines[name].send(True)
                answer = _answer(lines[name], workers[name])
                if isinstance(answer, Turn):
                    outcomes[name].turns.append(answer)
                else:
                    outcomes[name].error = answer
    for name, worker in workers.items():
        if outcomes[name].error is None:
            lines[name].send(False)
        worker.join()
    return outcomes


def merged(several: Sequence[Mapping[str, Outcome]]) -> dict[str, Outcome]:
    """Return the turns of several processes of each contender, or the error of one; other
    measurements are those of the first."""
    found = {}
    for name, first in several[0].items():
        each = [outcomes[name] for outcomes in several]
        error = next((one.error for one in each if one.error is not None), None)
        turns = [turn for one in each for turn in one.turns]
        found[name] = replace(first, turns=turns, error=error)
    return found


def _answer(line: Connection, worker: Any) -> Any:
    try:
        return line.recv()
    except EOFError:
        worker.join()
        return f"the process ended with exit code {worker.exitcode}"


def _serve(
    make: Make,
    threads: int,
    steps: int | None,
    warm_ups: int,
    returns_memory: bool,
    device: str,
    connection: Connection,
) -> None:
    torch.set_num_threads(threads)
    if returns_memory and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    try:
        step = make()
        resting = resident_memory(device)
        value = step()
        outcome = Outcome(value, resting, peak_memory(device))
        synchronise(device)
        start = time.perf_counter()
        for _ in range(warm_ups - 1):
            step()
        synchronise(device)
        if steps is None:
            seconds = (time.perf_counter() - start) / (warm_ups - 1)
            steps = min(MOST_STEPS, max(1, round(SHORTEST_TURN / max(seconds, 1e-9))))
        connection.send(outcome)
        while connection.recv():
            connection.send(_timed(step, steps, device))
    except Exception as error:
        connection.send(first_line(error))


def _timed(step: Step, steps: int, device: str) -> Turn:
    synchronise(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    synchronise(device)
    wall = (time.perf_counter() - start) / steps
    return Turn(wall, (time.process_time() - start_cpu) / steps, peak_memory(device))


def first_line(error: BaseException) -> str:
    """Return an error as one line of text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def resident_memory(device: str = "cpu") -> float:
    """Return the memory of this process, or of its tensors on a card, MiB.

    0 where the system does not report it.
    """
    if device != "cpu":
        return held_memory(device)
    return _proc_status("VmRSS") or 0.0


def peak_memory(device: str = "cpu") -> float:
    """Return the peak memory of this process, or of its tensors on a card, MiB."""
    if device != "cpu":
        return most_memory(device)
    # The peak of getrusage includes that of the process before it executed another program.
    found = _proc_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if found is None else found


def _proc_status(key: str) -> float | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    entries = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return float(entries[key].split()[0]) / 1024 if key in entries else None


def environment(threads: int, device: str = "cpu") -> dict[str, str | int]:
    """Return the environment on which the numbers depend."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    allocator = [f"{key}={os.environ[key]}" for key in sorted(os.environ) if "MALLOC" in key]
    return {
        "processor": processor,
        "threads": threads,
        **described(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metaweight": metaweight.__version__,
        **peer_versions(),
        "allocator": ", ".join(allocator) or "as the system sets it",
    }


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    found = {}
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def markdown(rows: list[dict[str, Any]], title: str) -> str:
    """Return rows as a Markdown table; the first one's keys are the columns."""
    keys = list(rows[0])
    lines = [f"### {title}", "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
