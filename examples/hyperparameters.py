"""Hyper-parameters by gradient, against a grid: one regularisation strength a column.

Softmax regression on few digits, beside whose 64 pixels stand 64 columns of noise. The lower
problem fits the weights with a squared penalty, each column's times its own strength. The upper
problem learns the strengths on other digits, through the solution of the lower one, by
conjugate gradients.

With one strength for all columns a grid is as good and simpler. With one a column it is not
possible, and the learned ones tell pixels from noise. ::

    python examples/hyperparameters.py
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, ConjugateGradient, Engine, ImplicitProblem
from metaweight.data import load_digits

Batch = tuple[Tensor, Tensor]


class Data(NamedTuple):
    """What the lower problem, the upper problem and nobody trains on."""

    fit: Batch
    validation: Batch
    test: Batch


class Linear(nn.Module):
    """Softmax regression, from zero."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(columns, 10))
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Strengths(nn.Module):
    """Positive numbers, by their logarithms."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.logarithms = nn.Parameter(torch.full((number, 1), -4.0))

    def forward(self) -> Tensor:
        return self.logarithms.exp()


def penalised_loss(net: Linear, strengths: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy and half the squared weights, each row times its strength."""
    return F.cross_entropy(net(batch[0]), batch[1]) + 0.5 * (strengths * net.weight**2).sum()


class Fit(ImplicitProblem[Linear]):
    """Lower problem."""

    def training_step(self, batch: Batch) -> Tensor:
        return penalised_loss(self.module, self.validate(), batch)


class Validate(ImplicitProblem[Strengths]):
    """Upper problem."""

    def training_step(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.fit(batch[0]), batch[1])

    @torch.no_grad()
    def param_callback(self) -> None:
        # Above some strength the lower learning rate would be too large.
        self.module.logarithms.clamp_(max=0)


def make_data(noise_columns: int, seed: int) -> Data:
    """Return 200 digits to fit, 400 to validate, and the test digits, with columns of noise."""
    generator = torch.Generator().manual_seed(seed)
    train, test = load_digits(seed=seed)
    order = torch.randperm(len(train), generator=generator)
    inputs, test_inputs = (
        torch.cat(
            [
                part.inputs.flatten(1),
                torch.randn(len(part), noise_columns, generator=generator),
            ],
            1,
        )
        for part in (train, test)
    )
    fit, validation = order[:200], order[200:600]
    return Data(
        (inputs[fit], train.labels[fit]),
        (inputs[validation], train.labels[validation]),
        (test_inputs, test.labels),
    )


def optimizer_of(net: Linear) -> torch.optim.Optimizer:
    """Return the optimizer of all fits."""
    return torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)


def train(data: Data, strengths: Tensor, steps: int) -> Linear:
    """Return weights fitted from zero with these strengths."""
    net = Linear(data.fit[0].shape[1])
    optimizer = optimizer_of(net)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(penalised_loss(net, strengths, data.fit))
        optimizer.step()
    return net


@torch.no_grad()
def loss_on(net: Linear, batch: Batch) -> float:
    """Return the cross-entropy without a penalty."""
    return float(F.cross_entropy(net(batch[0]), batch[1]))


def search(data: Data, steps: int) -> Linear:
    """Return the best fit of a grid of one strength, by the validation samples."""
    powers = (-4.0, -3.5, -3.0, -2.5, -2.0, -1.5)
    nets = [train(data, torch.tensor(10.0**power), steps) for power in powers]
    return min(nets, key=lambda net: loss_on(net, data.validation))


def learn(data: Data, number: int, steps: int) -> Tensor:
    """Return this many learned strengths: 1, or one a column."""
    net, strengths = Linear(data.fit[0].shape[1]), Strengths(number)
    method = ConjugateGradient(iterations=20, damping=0.01)
    lower = Fit(
        "fit",
        Config(type=method, unroll_steps=10, warmup_steps=50),
        module=net,
        optimizer=optimizer_of(net),
        train_data_loader=[data.fit],
    )
    upper = Validate(
        "validate",
        module=strengths,
        optimizer=torch.optim.Adam(strengths.parameters(), lr=0.3),
        train_data_loader=[data.validation],
    )
    Engine.bilevel(upper, lower, train_iters=50 + 10 * steps, progress=False).run()
    return strengths.logarithms.detach().exp()


def main(steps: int = 40, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Search, learn, print and return the losses on validation and test samples."""
    # The networks are small: a second thread would make the run slower.
    torch.set_num_threads(1)
    data = make_data(64, seed)
    one, many = (learn(data, number, steps) for number in (1, 128))
    nets = {
        "grid of one strength": search(data, 5 * steps),
        "one learned strength": train(data, one, 5 * steps),
        "one a column": train(data, many, 5 * steps),
    }
    found = {name: (loss_on(n, data.validation), loss_on(n, data.test)) for name, n in nets.items()}
    for name, (validation, test) in found.items():
        print(f"{name}: loss {validation:.3f} on validation samples, {test:.3f} on test samples")
    pixels, noise = many[:64].median(), many[64:].median()
    print(f"median strength of pixels {float(pixels):.4f}, of noise {float(noise):.4f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of the upper problem")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    main(**vars(parser.parse_args()))
