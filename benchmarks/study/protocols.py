"""Settings of the training: those of the publications, and measured ones for quick runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .methods import Method
from .settings import Setting


@dataclass(frozen=True)
class Protocol:
    """Settings of the training of classifier and weight network.

    Args:
        learning_rate: Learning rate of the classifier's SGD with Nesterov momentum.
        schedule: ``"milestones"``, or ``"one-cycle"``: linearly up for a fifth of the steps, then
            down to 0.
        milestones: Shares of the steps after which the learning rate is divided by 10.
        meta_optimizer: ``"adam"``, or ``"sgd"`` with the classifier's momentum and weight decay.
        meta_learning_rate: Learning rate of the weight network.
        meta_schedule: Whether the milestones apply to the weight network as well.
        meta_weight_decay: Weight decay of the weight network.
        normalise: Whether ``"meta-weight-net"`` scales the weights of a batch to mean 1.
        class_groups: Groups by class size that share a function in ``"class-aware"``; ``None``
            gives each class its own.
        steps: Steps of a run, or
        epochs: passes over the training split, where ``steps`` is ``None``.
        with_replacement: Draw batches with replacement, for data of a few batches.
        focal_gamma: Exponent of the focal loss.
        batch_size: Samples in a batch, of the clean samples too.
        momentum: Momentum of the classifier's SGD.
        weight_decay: Weight decay of the classifier's SGD.
        own: By the base of a method, or one of its extras, what is set differently for it; of
            several the last one holds.
    """

    learning_rate: float
    meta_optimizer: str
    meta_learning_rate: float
    schedule: str = "milestones"
    milestones: tuple[float, ...] = ()
    meta_schedule: bool = False
    meta_weight_decay: float = 0.0
    normalise: bool = False
    class_groups: int | None = None
    steps: int | None = None
    epochs: int | None = None
    with_replacement: bool = False
    focal_gamma: float = 2.0
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 5e-4
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, method: Method) -> Protocol:
        """Return the settings of one method."""
        changes: dict[str, Any] = {"own": {}}
        for name, given in self.own.items():
            if name == method.base or name in method.extras:
                changes.update(given)
        return replace(self, **changes)

    def changed(self, changes: Mapping[str, Any]) -> Protocol:
        """Return the protocol with changes that hold for every method."""
        own = {
            part: {name: value for name, value in given.items() if name not in changes}
            for part, given in self.own.items()
        }
        return replace(self, **{"own": own, **changes})


# Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379), the authors' long-tail settings.
# Their learning rate of 1e-5 multiplies a hypergradient that has the classifier's learning rate
# (0.1, and its milestones) as a factor. Ours has not, so the factor is included here.
PUBLISHED_IMBALANCE = Protocol(
    learning_rate=0.1,
    milestones=(0.8, 0.9),
    meta_optimizer="sgd",
    meta_learning_rate=1e-5 * 0.1,
    meta_schedule=True,
    meta_weight_decay=5e-4,
    normalise=True,
    class_groups=3,
    epochs=100,
)

# The same paper's settings for noise. Adam does not see the scale of the hypergradient. With
# classes of one size, groups by size would be accidental, so each class has its own function.
PUBLISHED_NOISE = Protocol(
    learning_rate=0.1,
    milestones=(40 / 60, 50 / 60),
    meta_optimizer="adam",
    meta_learning_rate=1e-3,
    meta_weight_decay=1e-4,
    epochs=60,
)

# The classifier's learning rate was chosen from 0.03, 0.1 and 0.3, on seeds 100 and 101 and samples
# held out. An exponential output is uniform at first and has further to go; on top of the
# logit-adjusted loss there is little left to learn, and quick steps follow the few clean samples.
QUICK = Protocol(
    learning_rate=0.1,
    schedule="one-cycle",
    meta_optimizer="adam",
    meta_learning_rate=1e-3,
    epochs=15,
    batch_size=128,
    own={
        "exponential": {"meta_learning_rate": 1e-2},
        "balanced": {"meta_learning_rate": 1e-4},
    },
)

DIGITS_IMBALANCE = Protocol(
    learning_rate=0.05,
    milestones=(0.6, 0.85),
    meta_optimizer="adam",
    meta_learning_rate=1e-2,
    normalise=True,
    steps=500,
    with_replacement=True,
    focal_gamma=1.0,
)

# With wrong labels the learning rate decides how many of them are memorised, so fixed and
# learned weights each have one that is good for them after the last step: chosen on seeds 100 and
# 101, for fixed weights out of 0.001 to 0.1 in eight steps, for learned ones out of ten pairs of
# 0.0025 to 0.05 with a weight network at 0.001 to 0.03. `--lr 0.05 --meta-lr 0.01` shows what
# happens with the learning rate of clean labels.
DIGITS_IMBALANCE_NOISE = replace(
    DIGITS_IMBALANCE,
    learning_rate=0.0025,
    meta_learning_rate=1e-3,
    own={
        base: {"learning_rate": 0.005}
        for base in ("meta-weight-net", "meta-weight-net-normalised", "class-aware")
    },
)

# Chosen in the same way: from 0.001, 0.0025, 0.01 and 0.05 for fixed weights, and from 0.0025, 0.01
# and 0.05 for learned ones.
DIGITS_NOISE = Protocol(
    learning_rate=0.0025,
    milestones=(0.6, 0.85),
    meta_optimizer="adam",
    meta_learning_rate=1e-3,
    meta_weight_decay=1e-4,
    steps=800,
    with_replacement=True,
    own={
        base: {"learning_rate": 0.01}
        for base in ("meta-weight-net", "meta-weight-net-normalised", "class-aware")
    },
)


def protocol_for(setting: Setting) -> Protocol:
    """Return how a setting is trained where no argument says otherwise."""
    tailed = setting.imbalance_factor > 1
    noisy = setting.noise > 0 or setting.human_labels is not None
    if setting.dataset == "digits":
        if tailed and noisy:
            return DIGITS_IMBALANCE_NOISE
        return DIGITS_NOISE if noisy else DIGITS_IMBALANCE
    if setting.network == "quick":
        return QUICK
    return PUBLISHED_NOISE if noisy and not tailed else PUBLISHED_IMBALANCE
