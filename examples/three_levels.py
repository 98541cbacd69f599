"""Three levels: which samples are worth pre-training on, by what they do after fine-tuning.

1. ``pretrain`` fits a network to digits, 60 % of whose labels were redrawn, weighted by sample.
2. ``finetune`` fits another to 50 checked digits, pulled towards the first.
3. ``judge`` owns the weights and the strength of the pull, and learns both on 100 other checked
   digits: through the fine-tuned network, and through that and the pre-trained one.

The pre-trained network becomes better by much, the fine-tuned one, put right by the checked digits
before, by little. ::

    python examples/three_levels.py

Source: Zhao, He, Xie, "Learning by Ignoring, with Application to Domain Adaptation", 2020
(arXiv:2012.14288).
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Engine, EngineConfig, ImplicitProblem, Problem, ReweightedProblem
from metaweight.data import LabelledTensors, TensorLoader, load_digits, meta_split
from metaweight.noise import inject_label_noise
from metaweight.weighting import MetaWeightNet

Batch = tuple[Tensor, Tensor]


class Upper(nn.Module):
    """The weights of samples, and the strength of the pull."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = MetaWeightNet()
        self.log_pull = nn.Parameter(torch.tensor(-3.0))


class Pretrain(ReweightedProblem[nn.Module]):
    """``min_w1 mean_i V(l_i) l_i``, with weights of mean 1 in each batch."""

    def sample_losses(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Batch) -> Tensor:
        weights: Tensor = self.judge.module.weigh(losses)
        return weights / weights.mean()


class Finetune(ImplicitProblem[nn.Module]):
    """``min_w2 mean_j l_j + exp(a)/2 ||w2 - w1||²``."""

    def training_step(self, batch: Batch) -> Tensor:
        pairs = zip(self.module.parameters(), self.pretrain.module.parameters(), strict=True)
        distance = torch.stack([(own - first).square().sum() for own, first in pairs]).sum()
        loss = F.cross_entropy(self.module(batch[0]), batch[1])
        pull: Tensor = self.judge.module.log_pull.exp()
        return loss + 0.5 * pull * distance


class Judge(ImplicitProblem[Upper]):
    """``min_θ mean_k l_k`` of the fine-tuned network."""

    def training_step(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.finetune(batch[0]), batch[1])


def network() -> nn.Module:
    """Return a small network for digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of both networks."""
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def build(
    parts: tuple[LabelledTensors, LabelledTensors, LabelledTensors],
    steps: int,
    upper_lr: float,
    seed: int,
) -> Engine:
    """Return the program on noisy, checked and validation digits."""
    torch.manual_seed(seed)
    noisy, checked, validation = parts
    first, second, above = network(), network(), Upper()
    pretrain = Pretrain(
        "pretrain", module=first, optimizer=sgd(first), train_data_loader=TensorLoader(noisy, 100)
    )
    finetune = Finetune(
        "finetune",
        module=second,
        optimizer=sgd(second),
        train_data_loader=TensorLoader(checked, 50),
    )
    judge = Judge(
        "judge",
        module=above,
        optimizer=torch.optim.Adam(above.parameters(), lr=upper_lr),
        train_data_loader=TensorLoader(validation, 100),
    )
    edges: dict[str, dict[Problem, list[Problem]]] = {
        "u2l": {judge: [pretrain, finetune]},
        "l2u": {pretrain: [finetune], finetune: [judge]},
    }
    config = EngineConfig(train_iters=steps, progress=False)
    return Engine([pretrain, finetune, judge], config, edges)


@torch.no_grad()
def accuracy(net: nn.Module, test: LabelledTensors) -> float:
    """Return the share of right classes in %."""
    return 100 * float((net(test.inputs).argmax(1) == test.labels).float().mean())


def main(steps: int = 300, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Run with upper parameters fixed and learned; print and return both networks' accuracies."""
    # The networks are small: a second thread would make the run slower.
    torch.set_num_threads(1)
    train, test = load_digits(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rest, checked = meta_split(train, 5, generator=generator)
    rest, validation = meta_split(rest, 10, generator=generator)
    noise = inject_label_noise(rest.labels, 0.6, num_classes=10, generator=generator)
    parts = (rest.with_labels(noise.noisy), checked, validation)
    found = {}
    for name, upper_lr in (("fixed", 0.0), ("learned", 1e-3)):
        engine = build(parts, steps, upper_lr, seed)
        engine.run()
        before, after = (
            accuracy(problem.module, test) for problem in (engine.pretrain, engine.finetune)
        )
        found[name] = before, after
        print(f"{name}: pre-trained {before:.1f} %, fine-tuned {after:.1f} %")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="steps of pre-training")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    main(**vars(parser.parse_args()))
