"""Train with 20 labelled and a thousand unlabelled digits: a Mean Teacher and its student.

The consistency weight rises over the first 40 % of the run; student and teacher have independent
noise.

    python examples/semi_supervised.py
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from metaweight import Engine, EngineConfig
from metaweight.averaging import EMAHook
from metaweight.consistency import (
    Affine,
    Chain,
    GaussianNoise,
    MeanTeacher,
    Ramp,
    RampHook,
    SemiSupervisedProblem,
)
from metaweight.data import LabelledTensors, TensorLoader, load_digits, semi_supervised_split
from metaweight.models import DigitsNet


@torch.no_grad()
def accuracy(model: nn.Module, data: LabelledTensors) -> float:
    """Return the accuracy in %."""
    return 100 * float((model(data.inputs).argmax(1) == data.labels).double().mean())


def train(weight: float, steps: int, seed: int = 0) -> dict[str, float]:
    """Return the test accuracy of student and teacher in %, with that consistency weight."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    digits, test = load_digits()
    split = semi_supervised_split(digits, 20, generator=generator)
    net = DigitsNet(generator=generator)
    average = EMAHook("student", beta=0.98, warm_up="mean_teacher")
    student = SemiSupervisedProblem(
        "student",
        method=MeanTeacher(),
        teacher=average,
        augment=Chain(Affine(0.1), GaussianNoise(0.1)),
        seed=seed,
        module=net,
        optimizer=torch.optim.Adam(net.parameters(), lr=2e-3),
        train_data_loader=(
            TensorLoader(split.labelled, 20, seed=seed),
            TensorLoader(split.unlabelled, 64, seed=seed),
        ),
    )
    found: dict[str, float] = {}

    class Evaluating(Engine):
        def validation(self) -> Mapping[str, float]:
            found["student"] = accuracy(net, test)
            with average.applied():
                found["teacher"] = accuracy(net, test)
            return found

    Evaluating(
        [student],
        EngineConfig(train_iters=steps, valid_step=steps, strategy="cpu"),
        hooks=[RampHook("student", Ramp(weight)), average],
    ).run()
    return found


def main(steps: int = 500) -> dict[str, dict[str, float]]:
    """Train with and without consistency, and print the accuracies."""
    results = {"labels alone": train(0.0, steps), "Mean Teacher": train(30.0, steps)}
    for name, found in results.items():
        print(f"{name}: student {found['student']:.1f} %, teacher {found['teacher']:.1f} %")
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
