"""The workloads of the step benchmark as data, and their measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from speed_contenders import (
    EXACT,
    EXACT_AGAIN,
    FULL,
    HIGHER,
    HIGHER_KEPT,
    OFFICIAL,
    PLAIN,
    TORCHOPT,
    TORCHOPT_KEPT,
)
from speed_mean_teacher import mean_teacher_contenders
from speed_mlp import mlp_contenders
from speed_official import official_contenders
from speed_resnet32 import compiled_contenders, resnet32_contenders
from speed_three_level import three_level_contenders
from speed_toy import toy_contenders
from speed_transformer import transformer_contenders
from speed_unroll10 import STEPS, unroll10_contenders
from turns import Outcome, Step, measure, merged

ON_A_CARD = (
    "resnet32",
    "resnet32_exact",
    "compiled",
    "mlp",
    "transformer",
    "mean_teacher",
    "unroll10",
)
"""Workloads that a card can compute; of the others a step is all Python."""

Contenders = Callable[[], dict[str, Callable[[], Step]]]
"""Returns the makers of the contenders by name; must be picklable."""

EXACT_NAMES = (
    PLAIN,
    OFFICIAL,
    EXACT,
    FULL,
    EXACT_AGAIN,
    HIGHER,
    HIGHER_KEPT,
    TORCHOPT,
    TORCHOPT_KEPT,
)


@dataclass(frozen=True)
class Workload:
    """A comparison.

    Attributes:
        title: Title of its table.
        contenders: Returns makers of the contenders' steps.
        base: The contender whose time and memory the others' are divided by.
        threads: Threads of each contender.
        rounds: Turns of each contender.
        steps: Steps of a turn; as many as fill 0.1 s when left out.
        processes: How many processes a contender has, one after the other, with a share of the
            rounds each: how fast small arrays are depends on where a process has them in memory.
        lower_steps: Lower steps in a contender's step; times are those of one lower step.
        device: Where they compute; ``contenders`` takes it if it is not the processor.
    """

    title: str
    contenders: Contenders
    base: str
    threads: int = 1
    rounds: int = 15
    steps: int | None = None
    processes: int = 1
    lower_steps: int = 1
    device: str = "cpu"

    def on(self, device: str) -> Workload:
        """Return the workload on a device; on a card a turn has as many steps as fill its time."""
        if device == "cpu":
            return self
        contenders = partial(self.contenders, device=device)  # type: ignore[call-arg]
        title = f"{self.title}, {device}"
        return replace(self, contenders=contenders, device=device, title=title, steps=None)

    def with_effort(self, rounds: int | None, threads: int | None) -> Workload:
        """Return the workload with other rounds and threads, where they are given."""
        return replace(self, rounds=rounds or self.rounds, threads=threads or self.threads)


def workloads(batch: int = 100) -> dict[str, list[Workload]]:
    """Return all workloads by name.

    Args:
        batch: Samples of a batch of the ResNet-32.
    """
    return {
        "resnet32": [
            Workload(
                f"resnet32 {batch}",
                partial(resnet32_contenders, batch),
                base=PLAIN,
                threads=2,
                rounds=11,
                steps=1,
            )
        ],
        "resnet32_exact": [
            Workload(
                f"resnet32, exact {batch}",
                partial(official_contenders, batch, EXACT_NAMES),
                base=PLAIN,
                threads=2,
                rounds=7,
                steps=1,
            )
        ],
        "compiled": [
            Workload(
                f"resnet32, compiled {batch}",
                partial(compiled_contenders, batch),
                base=PLAIN,
                threads=2,
                rounds=7,
                steps=1,
            )
        ],
        "mlp": [Workload("mlp", mlp_contenders, base=PLAIN, processes=3)],
        "transformer": [Workload("transformer", transformer_contenders, base=PLAIN, threads=2)],
        "mean_teacher": [
            Workload(
                "mean_teacher",
                mean_teacher_contenders,
                base="supervised step",
                threads=2,
                rounds=11,
                steps=1,
            )
        ],
        "three_level": [
            Workload("three_level", three_level_contenders, base="hand-written", processes=3)
        ],
        "unroll10": [
            Workload(
                "unroll10, a lower step",
                unroll10_contenders,
                base=PLAIN,
                processes=3,
                lower_steps=STEPS,
            )
        ],
        "toy": [
            Workload(
                f"toy {unroll}",
                partial(toy_contenders, unroll),
                base="hand-written",
                steps=400,
                processes=3,
            )
            for unroll in (1, 100)
        ],
    }


def make_contender(contenders: Contenders, name: str) -> Step:
    """Return one contender's step."""
    return contenders()[name]()


def shares(rounds: int, processes: int) -> list[int]:
    """Return how many rounds each process has, as equal as can be; at least one each."""
    number = max(1, min(rounds, processes))
    return [rounds // number + (place < rounds % number) for place in range(number)]


def measured(
    workload: Workload, names: Iterable[str] | None = None, start: str = "spawn"
) -> dict[str, Outcome]:
    """Return the measurements of every contender, or its error.

    Args:
        workload: The comparison.
        names: The contenders to measure, among those there are; all when left out.
        start: How processes are started; see :func:`turns.measure`.

    Raises:
        RuntimeError: When the base or a contender of metaweight's failed.
    """
    wanted = None if names is None else set(names)
    makes = {
        name: partial(make_contender, workload.contenders, name)
        for name in workload.contenders()
        if wanted is None or name in wanted
    }
    outcomes = merged(
        [
            measure(
                makes,
                workload.threads,
                rounds,
                workload.steps,
                start=start,
                device=workload.device,
            )
            for rounds in shares(workload.rounds, workload.processes)
        ]
    )
    for name, outcome in outcomes.items():
        if outcome.error is not None and (name == workload.base or name.startswith("metaweight")):
            raise RuntimeError(f"{workload.title}, {name}: {outcome.error}")
    return outcomes
