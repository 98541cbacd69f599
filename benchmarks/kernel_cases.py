"""The programs that kernels are left out of: tasks, products, numbers of steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from hypergradient_tasks.unrolled import Run, Workload, ours
from hypergradient_tasks.unrolled_networks import LR
from hypergradient_tasks.workloads import resnet32, transformer

from metaweight import Neumann, Unroll

PRODUCTS = {
    "exact": Unroll(),
    "forward_over_reverse": Unroll(product="forward_over_reverse"),
    # Small enough for the series to converge, which costs what any other does.
    "neumann": Neumann(iterations=5, alpha=1e-3),
}


class Case(NamedTuple):
    """What is measured: a task, how it is differentiated, steps, rounds, and whether memory too."""

    task: str
    product: str
    k: int
    rounds: int
    memory: bool = False


CASES = (
    Case("resnet32", "exact", 1, 7),
    Case("resnet32", "exact", 4, 3, memory=True),
    Case("resnet32", "exact", 8, 3),
    Case("resnet32", "forward_over_reverse", 1, 5, memory=True),
    Case("resnet32", "forward_over_reverse", 4, 3),
    Case("resnet32", "neumann", 1, 3, memory=True),
    Case("transformer", "exact", 1, 7),
    Case("transformer", "exact", 4, 3),
    Case("transformer", "exact", 8, 3),
)
QUICK = (
    Case("resnet32", "exact", 1, 1),
    Case("resnet32", "forward_over_reverse", 2, 1, memory=True),
    Case("resnet32", "neumann", 1, 1),
    Case("transformer", "exact", 1, 1),
)


def of_resnet32(k: int, quick: bool) -> Workload:
    """Return the ResNet-32's workload."""
    return resnet32(k, 8, 1, LR) if quick else resnet32(k, 100, 20, LR)


def of_transformer(k: int, quick: bool) -> Workload:
    """Return the transformer's workload."""
    return transformer(k, 4, 1, LR) if quick else transformer(k, 32, 20, LR)


TASKS = {"resnet32": of_resnet32, "transformer": of_transformer}


def program(path: Path, case: Case) -> Run:
    """Return the case's run, on the workload saved there."""
    work: Workload = torch.load(path, weights_only=False)
    return ours(PRODUCTS[case.product], False, dataclasses.replace(work, steps=case.k))
