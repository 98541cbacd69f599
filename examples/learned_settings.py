"""Settings usually chosen by hand, learned on a few clean samples.

A small network trains on digits whose labels are right, and on digits 40 % of whose labels were
redrawn at random. An upper problem, with 10 clean samples of each class, learns one number by
hypergradients through the training steps: the trust of bootstrapping in a label, the weight of
labels against soft targets in online confident learning, or the concentration of mixup.

The trust becomes lower where labels are wrong. The other two need not change as would be best for a
whole training run: the hypergradient goes through one step, and so rewards what helps the next
one. ::

    python examples/learned_settings.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metaweight import Engine, Hook
from metaweight.data import LabelledTensors, TensorLoader, load_digits, meta_split
from metaweight.models import DigitsNet
from metaweight.noise import (
    BootstrappedClassifier,
    ConfidenceLearner,
    ConfidentClassifier,
    LearnedConcentration,
    LearnedConfidence,
    LearnedTrust,
    MixupClassifier,
    OnlineConfidentLearning,
    OnlineConfidentLearningHook,
    WithCriterion,
    inject_label_noise,
)
from metaweight.weighting import WeightLearner

BATCH = 100


class Follow(Hook):
    """Records the learned number after every step.

    Args:
        read: Returns the number.
    """

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self.values: list[torch.Tensor] = []
        self._read = read

    def iteration_end(self, engine: Engine) -> None:
        with torch.no_grad():
            self.values.append(self._read().detach().clone())


def common(module: nn.Module, data: LabelledTensors, seed: int) -> dict[str, Any]:
    """Return the arguments common to all lower problems."""
    return {
        "module": module,
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9),
        "train_data_loader": TensorLoader(data, BATCH, seed=seed),
    }


def learn(
    setting: str, data: LabelledTensors, clean: LabelledTensors, steps: int, seed: int
) -> float:
    """Train both problems and return the mean of the learned number over the last half."""
    torch.manual_seed(seed)
    net: nn.Module = DigitsNet(generator=torch.Generator().manual_seed(seed))
    hooks: list[Hook] = []
    lower: Any
    number: Any
    if setting == "trust of bootstrapping":
        number = LearnedTrust(0.5)
        lower = BootstrappedClassifier(
            "lower", beta="upper", kind="hard", **common(net, data, seed)
        )
        follow = Follow(number.s.sigmoid)
    elif setting == "share of hard labels":
        number = LearnedConfidence(10)
        net = WithCriterion(net, OnlineConfidentLearning(10))
        lower = ConfidentClassifier("lower", confidence="upper", **common(net, data, seed))
        hooks.append(OnlineConfidentLearningHook())
        follow = Follow(number.logit.sigmoid)
    else:
        number = LearnedConcentration(1.0)
        lower = MixupClassifier("lower", alpha="upper", **common(net, data, seed))
        follow = Follow(number)
    learner = ConfidenceLearner if isinstance(number, LearnedConfidence) else WeightLearner
    upper = learner(
        "upper",
        classifier="lower",
        module=number,
        optimizer=torch.optim.Adam(number.parameters(), lr=0.02),
        train_data_loader=TensorLoader(clean, BATCH, seed=seed),
    )
    engine = Engine.bilevel(upper, lower, train_iters=steps, hooks=[*hooks, follow])
    engine.run()
    return float(torch.stack(follow.values[steps // 2 :]).mean())


SETTINGS = ("trust of bootstrapping", "share of hard labels", "concentration of mixup")


def main(steps: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Learn every setting on right and on partly wrong labels, print and return the numbers."""
    # The networks are small: a second thread would make the run slower.
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    given, _ = load_digits(seed=seed)
    right, clean = meta_split(given, 10, generator=generator)
    noise = inject_label_noise(right.labels, 0.4, num_classes=10, generator=generator)
    found: dict[str, tuple[float, float]] = {}
    for setting in SETTINGS:
        on_right, on_wrong = (
            learn(setting, data, clean, steps, seed)
            for data in (right, right.with_labels(noise.noisy))
        )
        found[setting] = on_right, on_wrong
        print(f"{setting}: {on_right:.2f} on right labels, {on_wrong:.2f} with 40 % redrawn")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    main(**vars(parser.parse_args()))
