"""Settings of the experiments: those of the publications for CIFAR, measured ones for digits."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Protocol:
    """Settings of the training of classifier and weight network.

    Args:
        learning_rate: Learning rate of the classifier's SGD with Nesterov momentum.
        learned_learning_rate: The same under learned weights, where it differs.
        milestones: Shares of the steps after which the learning rate is divided by 10.
        meta_per_class: Clean meta samples of each class.
        meta_optimizer: ``"adam"``, or ``"sgd"`` with the classifier's momentum and weight decay.
        meta_learning_rate: Learning rate of the weight network.
        meta_schedule: Whether the milestones apply to the weight network as well.
        meta_weight_decay: Weight decay of the weight network.
        normalise: Whether ``"meta-weight-net"`` scales the weights of a batch to mean 1.
        class_groups: Groups by class size that share a function in ``"class-aware"``; ``None``
            gives each class its own.
        evaluations: Evaluations in a run.
        steps: Steps of a run, or
        epochs: passes over the training split, where ``steps`` is ``None``.
        with_replacement: Draw batches with replacement, for data of a few batches.
        focal_gamma: Exponent of the focal loss.
        batch_size: Samples in a batch, of the meta set too.
        momentum: Momentum of the classifier's SGD.
        weight_decay: Weight decay of the classifier's SGD.
        network: ``"resnet32"`` or ``"resnet18"``; the data's own where ``None``.
        per_class: Training samples of each class; all where ``None``.
    """

    learning_rate: float
    milestones: tuple[float, ...]
    meta_per_class: int
    meta_optimizer: str
    meta_learning_rate: float
    meta_schedule: bool
    meta_weight_decay: float
    normalise: bool
    class_groups: int | None
    evaluations: int
    learned_learning_rate: float | None = None
    steps: int | None = None
    epochs: int | None = None
    with_replacement: bool = False
    focal_gamma: float = 2.0
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 5e-4
    network: str | None = None
    per_class: int | None = None


# Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379), the authors' long-tail settings.
# Their learning rate of 1e-5 multiplies a hypergradient that has the classifier's learning rate
# (0.1, and its milestones) as a factor. Ours has not, so the factor is included here.
CIFAR_IMBALANCE = Protocol(
    learning_rate=0.1,
    milestones=(0.8, 0.9),
    meta_per_class=10,
    meta_optimizer="sgd",
    meta_learning_rate=1e-5 * 0.1,
    meta_schedule=True,
    meta_weight_decay=5e-4,
    normalise=True,
    class_groups=3,
    evaluations=100,
    epochs=100,
)

# The same paper's settings for noise. Adam does not see the scale of the hypergradient. With
# classes of one size, groups by size would be accidental, so each class has its own function.
CIFAR_NOISE = Protocol(
    learning_rate=0.1,
    milestones=(40 / 60, 50 / 60),
    meta_per_class=100,
    meta_optimizer="adam",
    meta_learning_rate=1e-3,
    meta_schedule=False,
    meta_weight_decay=1e-4,
    normalise=False,
    class_groups=None,
    evaluations=60,
    epochs=60,
)

DIGITS_IMBALANCE = Protocol(
    learning_rate=0.05,
    milestones=(0.6, 0.85),
    meta_per_class=5,
    meta_optimizer="adam",
    meta_learning_rate=1e-2,
    meta_schedule=False,
    meta_weight_decay=0.0,
    normalise=True,
    class_groups=None,
    evaluations=20,
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
    learned_learning_rate=0.005,
    meta_learning_rate=1e-3,
)

# Chosen in the same way: from 0.001, 0.0025, 0.01 and 0.05 for fixed weights, and from 0.0025, 0.01
# and 0.05 for learned ones.
DIGITS_NOISE = Protocol(
    learning_rate=0.0025,
    learned_learning_rate=0.01,
    milestones=(0.6, 0.85),
    meta_per_class=10,
    meta_optimizer="adam",
    meta_learning_rate=1e-3,
    meta_schedule=False,
    meta_weight_decay=1e-4,
    normalise=False,
    class_groups=None,
    evaluations=20,
    steps=800,
    with_replacement=True,
)
