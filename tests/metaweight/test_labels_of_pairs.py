"""Labels that are refused, and those of mixed and partly labelled samples."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from support.label_tools import (
    MEANS,
    OWN,
    WHOLE,
    learner,
    lower_loss,
    mixed,
    reweighted,
    seeded,
    weighted,
)
from support.labelled_batch import FEATURES, HOT, KEPT, MISSING, B, C, D, X, Y, close, per_sample
from support.semi_supervised import network, run, student
from torch import Tensor, nn

from metaweight import DataError, LossError
from metaweight.consistency import (
    MixMatch,
)
from metaweight.noise import (
    OnlineConfidentLearning,
    SoftBootstrappingLoss,
    mixup,
    mixup_loss,
)
from metaweight.weighting import (
    LDAMLoss,
    MetaWeightNet,
    WeightedClassifier,
    focal_loss,
)

Z = torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


NONE_OF_THESE = {
    "too large": (torch.where(Y == 2, 5, Y), "5 at index 2"),
    "negative": (torch.where(Y == 1, -7, Y), "-7 at index 1"),
    "floating": (Y + 0.5 * (Y == 1), "index 1 holds 1.5"),
    "text": (["a", *Y.tolist()[1:]], "'a' at index 0"),
    "not there": (pd.Series([0, None, *Y.tolist()[2:]], dtype="Int64"), "index 1 holds nan"),
    "several": (HOT + (Y == 2).unsqueeze(1), r"\[1, 1, 2\] at index 2"),
}


# These hand floating targets to their loss as they are.
HANDS_ON = ("WeightedClassifier", "ScoreWeighted", "WeightLearner", "mixup", "Mixup", "ConfidenceL")


@pytest.mark.parametrize("tool", MEANS | WHOLE)
def test_what_is_no_label_is_refused_with_its_place(tool: str) -> None:
    for kind, (labels, message) in NONE_OF_THESE.items():
        infers = tool in ("inject_label_noise", "LabelledTensors", "clean labels")
        if kind == "too large" and infers:
            continue  # There are as many classes as there are.
        if kind != "text" and any(word in tool for word in OWN):
            continue  # What it makes of targets is a matter of the loss.
        hands_on = tool.startswith(HANDS_ON) and tool != "mixup_accuracy"
        if kind in ("floating", "not there") and hands_on:
            continue
        with pytest.raises((LossError, DataError), match=message):
            (MEANS | WHOLE)[tool](X, labels)


@pytest.mark.parametrize("value", [255, 7, 0])
def test_a_further_value_can_stand_for_no_label(value: int) -> None:
    labels = torch.where(Y == 0, value, Y)
    labels[1] = -100
    kept = (Y != 0) & (torch.arange(B) != 1)
    for loss in (
        SoftBootstrappingLoss(ignore_index=value),
        partial(focal_loss, ignore_index=value),
        LDAMLoss([5, 3, 1], ignore_index=value),
        reweighted(F.cross_entropy, ignore_index=value),
    ):
        close(loss(Z, labels), loss(Z[kept], Y[kept]), rtol=1e-12, atol=1e-12)


def test_a_pair_counts_by_the_share_of_its_labels() -> None:
    a, b = torch.tensor([0, 1, -1, -1]), torch.tensor([1, -100, 2, -1])
    # By hand: the shares that count are 0.3 + 0.7, 0.3 and 0.7, of 2 samples in all.
    log_p = Z[:4].log_softmax(1)
    total = 0.3 * log_p[0, 0] + 0.7 * log_p[0, 1] + 0.3 * log_p[1, 1] + 0.7 * log_p[2, 2]
    close(mixup_loss(Z[:4], a, b, D), -total / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mark", [-1, -100])
def test_mixup_mixes_samples_with_a_label_among_each_other(mark: int) -> None:
    labels = Y.clone()
    labels[MISSING] = mark
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        batch = mixup(X, labels, 1.0, generator=generator)
        # Mixed with itself, but for rounding.
        close(batch.inputs[MISSING], X[MISSING], rtol=1e-12, atol=1e-12)
        assert (batch.labels_b[KEPT] >= 0).all()
        assert torch.equal(batch.labels_b[KEPT].sort().values, Y[KEPT].sort().values)


def test_mixmatch_mixes_samples_with_a_label_among_each_other() -> None:
    labels, places = Y.clone(), torch.arange(B, dtype=torch.float64)
    labels[MISSING] = -100

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(C, dtype=torch.float64))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x[:, 0])
            return self.w + 0 * x[:, :1]

    # Powers of 4, of which a sum of two tells both.
    inputs = (4.0**places).unsqueeze(1).expand(B, FEATURES)
    net = Spy()
    student_of = student(
        MixMatch(),
        net=net,
        loader=([(inputs, labels)], [torch.zeros(5, FEATURES).double()]),
        augment=None,
        lr=0.0,
    )
    run(student_of, 1)
    mixed_inputs = net.seen[-1][:B]
    assert torch.equal(mixed_inputs[MISSING], inputs[MISSING, 0])
    # Of each other sample the larger share is its own; what is left is none of the missing ones.
    rest = mixed_inputs[KEPT].log2() / 2
    assert not torch.isin(rest.round()[rest != rest.round()], MISSING).all()


def test_an_unlabelled_sample_has_no_gradient() -> None:
    labels = Y.clone()
    labels[MISSING] = -100
    for loss in (focal_loss, SoftBootstrappingLoss(), OnlineConfidentLearning(C), mixed):
        z = Z.clone().requires_grad_()
        loss(z, labels).backward()
        assert not z.grad[MISSING].any()
        assert z.grad[KEPT].any()


def test_a_loss_of_one_number_cannot_leave_out_a_sample() -> None:
    labels = Y.clone()
    labels[4] = -1

    def whole(z: Tensor, y: Tensor) -> Tensor:
        return per_sample(z, y).mean()

    close(learner(X, Y, loss=whole), learner(X, Y, loss=per_sample), rtol=1e-12, atol=1e-12)
    with pytest.raises(LossError, match=r"without a label at index 4.*reduction='none', with an"):
        learner(X, labels, loss=whole)


def test_targets_that_are_no_classes_are_a_matter_of_the_loss() -> None:
    # ±1 for a network of one output: here -1 is a class, and no sample is left out.
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, 1, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).squeeze(1)

    def hinge(z: Tensor, y: Tensor) -> Tensor:
        return (1 - y * z).clamp_min(0)

    signs = 2 * (Y % 2) - 1
    net = seeded(One)
    make = partial(WeightedClassifier, weights="upper", loss=hinge)
    found = lower_loss(make, seeded(MetaWeightNet), X, signs, net=net)
    losses = hinge(net(X), signs)
    close(found, (seeded(MetaWeightNet)(losses) * losses).mean(), rtol=1e-12, atol=1e-12)
    # Probabilities of classes.
    soft = torch.rand(B, C, dtype=torch.float64).softmax(1)
    losses = F.cross_entropy(network(batch_norm=False)(X), soft, reduction="none")
    close(
        weighted(X, soft), (seeded(MetaWeightNet)(losses) * losses).mean(), rtol=1e-12, atol=1e-12
    )
