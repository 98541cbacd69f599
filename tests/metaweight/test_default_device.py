"""``torch.set_default_device`` changes nothing for what has a device of its own.

The default is the meta device here, which holds no values: what is made there by mistake cannot be
combined with anything, and a generator of the host cannot draw there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.reweighting import Declared, Plain, program
from torch import Tensor
from torch.utils.data import TensorDataset

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    FiniteDifference,
    Neumann,
    Nystrom,
    Penalty,
    Reweighting,
    Unroll,
    ZeroOrder,
)
from metaweight.data import (
    LabelledTensors,
    SampleLoader,
    TensorLoader,
    load_digits,
    long_tailed,
    meta_split,
    out_of_distribution_pool,
    semi_supervised_split,
)
from metaweight.ensembles.ranking import checked_scores
from metaweight.noise import confident_learning, inject_label_noise, mixup, stratified_folds
from metaweight.weighting import class_size_groups

GIVEN = LabelledTensors(
    torch.linspace(-1, 1, 240).reshape(60, 4),
    torch.arange(60) % 3,
    torch.arange(60) % 3,
    torch.arange(60),
    3,
)
LOGITS = torch.linspace(-2, 2, 180).reshape(60, 3).sin().double()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def split() -> Any:
    return semi_supervised_split(GIVEN, 9, validation=6, generator=generator())


MADE: dict[str, Callable[[], Any]] = {
    "load_digits": lambda: load_digits(seed=0)[0].labels,
    "meta_split": lambda: meta_split(GIVEN, 3, generator=generator())[1].indices,
    "long_tailed": lambda: long_tailed(GIVEN, 4, generator=generator()).indices,
    "uniform noise": lambda: (
        inject_label_noise(GIVEN.labels, 0.4, num_classes=3, generator=generator()).noisy
    ),
    "flips": lambda: (
        inject_label_noise(
            GIVEN.labels, 0.4, num_classes=3, kind="flip", flip_to=[1, 2, 0], generator=generator()
        ).noisy
    ),
    "stratified_folds": lambda: stratified_folds(GIVEN.labels, 5, seed=0),
    "semi_supervised_split": lambda: split().labelled.indices,
    "out_of_distribution_pool": lambda: out_of_distribution_pool(
        split(), [0, 1], 0.25, generator=generator()
    )[1],
    "mixup": lambda: mixup(GIVEN.inputs, GIVEN.labels, 0.4, generator=generator())[0],
    "confident_learning": lambda: confident_learning(GIVEN.labels, logits=LOGITS).mask(),
    "scores": lambda: checked_scores(LOGITS[:, 0].numpy()),
    "class_size_groups": lambda: class_size_groups(torch.tensor([5, 50, 500], device="cpu")),
    "TensorLoader": lambda: list(TensorLoader(GIVEN, 16, seed=0))[1][1],
    "TensorLoader, in order": lambda: list(TensorLoader(GIVEN, 16, shuffle=False))[1][1],
    "SampleLoader": lambda: samples(0),
    "SampleLoader, workers": lambda: samples(2),
}


def samples(workers: int) -> Tensor:
    data = TensorDataset(GIVEN.inputs, GIVEN.labels)
    loader = SampleLoader(data, 16, seed=0, num_workers=workers, with_indices=True)
    return torch.cat([batch[2] for batch in loader])


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_given_data_is_where_they_are(name: str) -> None:
    expected = MADE[name]()
    with torch.device("meta"):
        found = MADE[name]()
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


METHODS: dict[str, tuple[Any, Any]] = {
    "darts": (Plain, FiniteDifference()),
    "reweighting, central": (Declared, Reweighting()),
    "reweighting, one-sided": (Declared, Reweighting(derivative="one_sided")),
    "reweighting, forward": (Declared, Reweighting(derivative="forward_mode")),
    "sama": (Plain, SAMA(preconditioner="exact")),
    "neumann": (Plain, Neumann(iterations=2, alpha=0.1)),
    "cg": (Plain, ConjugateGradient(iterations=2, damping=1.0)),
    "nystrom": (Plain, Nystrom(rank=5, damping=5.0)),
    "penalty": (Plain, Penalty(steps=2)),
    "unroll": (Declared, Unroll()),
    "unroll, forward over reverse": (Plain, Unroll(product="forward_over_reverse")),
    "unroll, one-sided": (Declared, Unroll(product="one_sided")),
    "unroll, kept graphs": (Plain, Unroll(memory="full")),
    "zero order": (Plain, ZeroOrder(samples=2)),
}


@pytest.mark.parametrize("name", METHODS)
def test_hypergradients_and_steps_are_the_same(name: str) -> None:
    """Dropout draws on the device of its inputs."""
    kind, method = METHODS[name]
    ends = []
    for device in ("cpu", "meta"):
        engine = program(kind, config=Config(type=method, gradient_clipping=1.0), dropout=0.5)
        engine.judge.optimizer.param_groups[0]["lr"] = 1.0
        torch.default_generator.manual_seed(3)
        with torch.device(device):
            for _ in range(3):
                engine.train_step()
        ends.append([*engine.judge.module.parameters(), *engine.classifier.module.parameters()])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


def test_a_run_and_a_check_are_the_same() -> None:
    ends = []
    for device in ("cpu", "meta"):
        engine = program(Declared)
        with torch.device(device):
            engine.run()
            engine.check_hypergradient()
        ends.append(list(engine.classifier.module.parameters()))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
