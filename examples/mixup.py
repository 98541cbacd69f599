"""Digits with 40 % of the labels redrawn: cross-entropy, bootstrapping, mixup and robust losses.

::

    python examples/mixup.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import Engine, EngineConfig, ImplicitProblem
from metaweight.data import LabelledTensors, TensorLoader, load_digits
from metaweight.models import DigitsNet
from metaweight.noise import (
    GeneralisedCrossEntropy,
    HardBootstrappingLoss,
    SoftBootstrappingLoss,
    inject_label_noise,
    mixup,
    mixup_loss,
)

Step = Callable[[Any, Tensor, Tensor], Tensor]


class Classifier(ImplicitProblem):
    """A network trained with the loss given to it."""

    def training_step(self, batch: Any) -> Tensor:
        step: Step = self.cfg
        return step(self.module, *batch)


def plain(criterion: Callable[[Tensor, Tensor], Tensor]) -> Step:
    return lambda network, inputs, labels: criterion(network(inputs), labels)


def mixed(alpha: float) -> Step:
    def step(network: Any, inputs: Tensor, labels: Tensor) -> Tensor:
        batch = mixup(inputs, labels, alpha)
        return mixup_loss(network(batch.inputs), batch.labels_a, batch.labels_b, batch.d)

    return step


METHODS: dict[str, Step] = {
    "cross-entropy": plain(F.cross_entropy),
    "soft bootstrapping": plain(SoftBootstrappingLoss()),
    "hard bootstrapping": plain(HardBootstrappingLoss()),
    "generalised cross-entropy": plain(GeneralisedCrossEntropy()),
    "mixup, alpha 0.2": mixed(0.2),
    "mixup, alpha 8": mixed(8.0),
}


def accuracy(step: Step, train: LabelledTensors, test: LabelledTensors, steps: int) -> float:
    torch.manual_seed(0)
    network = DigitsNet()
    classifier = Classifier(
        "classifier",
        module=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        train_data_loader=TensorLoader(train, 64),
        extra_config=step,
    )
    Engine([classifier], EngineConfig(train_iters=steps, strategy="cpu")).run()
    network.eval()
    with torch.no_grad():
        right = network(test.inputs).argmax(1) == test.labels
    return 100 * float(right.float().mean())


def main(steps: int = 300, noise: float = 0.4) -> dict[str, float]:
    """Train once with each method, print and return the test accuracies in %."""
    torch.set_num_threads(1)
    train, test = load_digits()
    noisy = inject_label_noise(
        train.labels, noise, num_classes=10, generator=torch.Generator().manual_seed(0)
    )
    wrong = 100 * float(noisy.mask.float().mean())
    print(f"{len(train)} training digits, {wrong:.1f} % wrong labels, {steps} steps each")
    found = {}
    for name, step in METHODS.items():
        found[name] = accuracy(step, train.with_labels(noisy.noisy), test, steps)
        print(f"{name:<26}{found[name]:5.1f} %")
    return found


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--noise", type=float, default=0.4)
    main(**vars(arguments.parse_args()))
