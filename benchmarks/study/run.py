"""One run: a method on the data of one seed, and what all of its parts need to know."""

from __future__ import annotations

from dataclasses import dataclass

from .methods import Method
from .protocols import Protocol
from .settings import Setting


@dataclass(frozen=True)
class Run:
    """One method on the data of one seed.

    Args:
        setting: What it is tried on.
        method: Which method.
        seed: Seed of all random numbers of the run.
        protocol: How to train, the method's own settings included.
        steps: Steps of the classifier.
        device: The device.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        evaluations: Evaluations in a run; as many as take a twentieth of its time where ``None``.
    """

    setting: Setting
    method: Method
    seed: int
    protocol: Protocol
    steps: int
    device: str
    precision: str
    evaluations: int | None
