"""Labels as people have them: every tool reads every kind alike, and leaves out what has none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from support.semi_supervised import network, noisy, run, student, unlabelled_batch
from support.zoo import over
from torch import Tensor, nn

from metaweight import DataError, ImplicitProblem, LossError
from metaweight.consistency import (
    ICT,
    VAT,
    FixMatch,
    MeanTeacher,
    MixMatch,
    PseudoLabel,
)
from metaweight.data import LabelledTensors
from metaweight.ensembles import OnlineEnsemble, ScoreWeightedClassifier
from metaweight.ensembles.scoring import cross_entropy_scores
from metaweight.noise import (
    BootstrappedClassifier,
    ConfidenceLearner,
    ConfidentClassifier,
    EarlyLearningRegularisation,
    GeneralisedCrossEntropy,
    HardBootstrappingLoss,
    LearnedConfidence,
    LearnedTrust,
    MixupClassifier,
    OnlineConfidentLearning,
    SoftBootstrappingLoss,
    SymmetricCrossEntropy,
    WithCriterion,
    co_teaching_loss,
    confident_learning,
    inject_label_noise,
    mixup,
    mixup_accuracy,
    mixup_loss,
    stratified_folds,
)
from metaweight.noise.confident_joint import confident_joint, confident_thresholds, contradicted
from metaweight.weighting import (
    ClassAwareWeightNet,
    DeferredReweighting,
    LDAMLoss,
    LogitAdjustedLoss,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    focal_loss,
)

C, B, FEATURES = 3, 12, 6
Z = torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
X = torch.randn(B, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(B) % C
# Samples that have no label, in two ways, and those that have one.
MISSING = torch.tensor([0, 3, 4, 10])
KEPT = torch.tensor([i for i in range(B) if i not in MISSING])
D = torch.tensor(0.3, dtype=torch.float64)
SHARES = torch.linspace(0, 1, B, dtype=torch.float64)


def per_sample(z: Tensor, y: Tensor) -> Tensor:
    """A user's loss without any of torch's settings."""
    return -z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)


class PerSample(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return per_sample(z, y)


class Zero(nn.Module):
    """Mixes nothing, as the output of an upper problem."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.s * 0


def parts(module: nn.Module) -> dict[str, Any]:
    settings = {"lr": 0.1}
    batch = (X, Y, torch.arange(B))
    optimizer = torch.optim.SGD(module.parameters(), **settings)
    return {"module": module, "optimizer": optimizer, "train_data_loader": [batch]}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().double()


class Upper(ImplicitProblem):
    """Calls its module; its own loss is not looked at."""

    def training_step(self, batch: Any) -> Tensor:
        del batch
        return sum((p**2).sum() for p in self.module.parameters())  # type: ignore[return-value]


def lower_loss(
    make: Callable[..., Any], upper: nn.Module, x: Tensor, y: Any, *, net: Any = None
) -> Tensor:
    """The loss of a lower problem on a batch."""
    module = network(batch_norm=False) if net is None else net
    lower = make("lower", **parts(module))
    over(Upper("upper", **parts(upper)), lower, train_iters=1)
    torch.default_generator.manual_seed(0)
    places = torch.arange(B) if len(x) == B else KEPT
    loss: Tensor = lower.training_step((x, y, places))
    return loss


def upper_loss(make: Callable[..., Any], upper: nn.Module, x: Tensor, y: Any) -> Tensor:
    """The loss of an upper problem on a batch."""

    class Lower(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.module(batch[0]), batch[1])

    learner = make("upper", classifier="lower", **parts(upper))
    over(learner, Lower("lower", **parts(network(batch_norm=False))), train_iters=1)
    loss: Tensor = learner.training_step((x, y))
    return loss


def weighted(x: Tensor, y: Any, net: Any = MetaWeightNet, **settings: Any) -> Tensor:
    make = partial(WeightedClassifier, weights="upper", **settings)
    return lower_loss(make, seeded(net), x, y)


def score_weighted(x: Tensor, y: Any) -> Tensor:
    scores = torch.linspace(0, 2, B, dtype=torch.float64)
    make = partial(ScoreWeightedClassifier, weights="upper", scores=scores)
    return lower_loss(make, seeded(MetaWeightNet), x, y)


def learner(x: Tensor, y: Any, **settings: Any) -> Tensor:
    return upper_loss(partial(WeightLearner, **settings), seeded(MetaWeightNet), x, y)


def confident(x: Tensor, y: Any) -> Tensor:
    net = WithCriterion(network(batch_norm=False), OnlineConfidentLearning(C, dtype=torch.float64))
    make = partial(ConfidentClassifier, confidence="upper")
    return lower_loss(make, seeded(partial(LearnedConfidence, C)), x, y, net=net)


def semi_supervised(x: Tensor, y: Any, method: Any, **settings: Any) -> Tensor:
    """The labelled term of a student without a random view."""
    settings = {"strong_augment": noisy} | settings
    net = network(batch_norm=False)
    problem = student(
        method, net=net, loader=([(x, y)], [unlabelled_batch()]), augment=None, lr=0.0, **settings
    )
    run(problem, 1)
    torch.default_generator.manual_seed(0)
    labelled: Tensor = problem.training_step(problem.cur_batch)["labelled"]
    return labelled


def collecting(x: Tensor, y: Any, **settings: Any) -> Tensor:
    """What online confident learning returns and collects."""
    criterion = OnlineConfidentLearning(C, dtype=torch.float64, **settings)
    loss = criterion(x @ X[:C].T, y)
    return torch.cat([loss.reshape(1), criterion.sums.flatten(), criterion.counts])


def early_learning(x: Tensor, y: Any) -> Tensor:
    """The loss of the second of two steps, and the targets."""
    criterion, places = EarlyLearningRegularisation(B, C, dtype=torch.float64), torch.arange(len(x))
    criterion(x[:, :C], y, places)
    loss = criterion(x @ X[:C].T, y, places)
    return torch.cat([loss.reshape(1), criterion.targets.sum(0)])


def reweighted(criterion: Any, **settings: Any) -> DeferredReweighting:
    """Class weights that are in use."""
    made = DeferredReweighting(criterion, [3.0, 1.0, 0.5], **settings)
    made.switch()
    return made


def of_logits(tool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A tool of logits, as one of inputs."""
    return lambda x, y: tool(x @ X[:C].T, y)


def mixed(z: Tensor, y: Any, **settings: Any) -> Tensor:
    """mixup's loss of pairs in which both or none have a label."""
    d = SHARES[: len(z)] if settings.pop("per_sample", False) else D
    return mixup_loss(z, y, y, d, **settings)


def unmixed(x: Tensor, y: Any) -> Tensor:
    batch = mixup(x, y, 0.0)
    return mixup_loss(batch.inputs @ X[:C].T, *batch[1:])


# The value of each on a batch is a mean, a count or a sum over the samples with a label.
MEANS: dict[str, Callable[[Tensor, Any], Any]] = {
    "focal_loss": of_logits(focal_loss),
    "focal_loss, gamma=0": of_logits(partial(focal_loss, gamma=0.0)),
    "focal_loss, sum": of_logits(partial(focal_loss, reduction="sum")),
    "soft bootstrapping": of_logits(SoftBootstrappingLoss()),
    "hard bootstrapping": of_logits(HardBootstrappingLoss()),
    "generalised cross-entropy": of_logits(GeneralisedCrossEntropy()),
    "symmetric cross-entropy": of_logits(SymmetricCrossEntropy()),
    "logit adjustment": of_logits(LogitAdjustedLoss([5, 3, 1])),
    "margins": of_logits(LDAMLoss([5, 3, 1])),
    "deferred weights": of_logits(reweighted(F.cross_entropy)),
    "deferred weights, margins, sum": of_logits(reweighted(LDAMLoss([5, 3, 1]), reduction="sum")),
    "early learning": early_learning,
    "co-teaching": of_logits(lambda z, y: co_teaching_loss(z, z.roll(1, 1), y, 1.0)),
    "online confident learning": collecting,
    "online confident learning, agree": partial(collecting, by="agree"),
    "online confident learning, ema": partial(collecting, thresholds="ema", by="label"),
    "mixup_loss": of_logits(mixed),
    "mixup_loss, per sample": of_logits(partial(mixed, criterion=per_sample)),
    "mixup_loss, sum": of_logits(partial(mixed, reduction="sum")),
    "mixup_loss, module": of_logits(partial(mixed, criterion=nn.CrossEntropyLoss())),
    "mixup_accuracy": of_logits(lambda z, y: mixup_accuracy(z, y, y, D)),
    "mixup": unmixed,
    "confident_joint": of_logits(lambda z, y: confident_joint(z.softmax(1), y)),
    "confident_thresholds": of_logits(lambda z, y: confident_thresholds(z.softmax(1), y)),
    "contradicted": of_logits(lambda z, y: contradicted(z.softmax(1), y).sum()),
    "confident_learning": of_logits(lambda z, y: confident_learning(y, logits=z).joint),
    "WeightedClassifier": weighted,
    "WeightedClassifier, normalise": partial(weighted, normalise=True),
    "WeightedClassifier, module": partial(weighted, loss=nn.CrossEntropyLoss()),
    "WeightedClassifier, function": partial(weighted, loss=per_sample),
    "WeightedClassifier, module of one's own": partial(weighted, loss=PerSample()),
    "WeightedClassifier, ignore_index=-1": partial(
        weighted, loss=nn.CrossEntropyLoss(ignore_index=-1, reduction="none")
    ),
    "WeightedClassifier, focal": partial(weighted, loss=focal_loss),
    "WeightedClassifier, bootstrapping": partial(weighted, loss=SoftBootstrappingLoss()),
    "WeightedClassifier, by class": partial(
        weighted, net=partial(ClassAwareWeightNet, torch.arange(C))
    ),
    "ScoreWeightedClassifier": score_weighted,
    "WeightLearner": learner,
    "WeightLearner, module": partial(learner, loss=nn.CrossEntropyLoss(ignore_index=-1)),
    "WeightLearner, unreduced": partial(learner, loss=nn.CrossEntropyLoss(reduction="none")),
    "WeightLearner, function": partial(learner, loss=per_sample),
    "WeightLearner, class weights": partial(
        learner, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    ),
    "WeightLearner, focal": partial(learner, loss=focal_loss),
    "BootstrappedClassifier": lambda x, y: lower_loss(
        partial(BootstrappedClassifier, beta="upper"), seeded(LearnedTrust), x, y
    ),
    "MixupClassifier": lambda x, y: lower_loss(
        partial(MixupClassifier, alpha="upper"), Zero(), x, y
    ),
    "ConfidentClassifier": confident,
    "ConfidenceLearner": lambda x, y: upper_loss(
        ConfidenceLearner, seeded(partial(LearnedConfidence, C)), x, y
    ),
    "FixMatch": partial(semi_supervised, method=FixMatch()),
    "ICT": partial(semi_supervised, method=ICT()),
    "MeanTeacher": partial(semi_supervised, method=MeanTeacher(divergence="kl")),
    "MixMatch": partial(semi_supervised, method=MixMatch(alpha=0.0)),
    "PseudoLabel": partial(semi_supervised, method=PseudoLabel()),
    "VAT": partial(semi_supervised, method=VAT()),
}

# Tools that need the label of every sample.
WHOLE: dict[str, Callable[[Tensor, Any], Any]] = {
    "ClassAwareWeightNet": lambda x, y: seeded(partial(ClassAwareWeightNet, torch.arange(C)))(
        x[:, 0], y
    ),
    "cross_entropy_scores": of_logits(cross_entropy_scores),
    "OnlineEnsemble": lambda x, y: OnlineEnsemble([network()]).score([(x, y)]),
    "inject_label_noise": lambda x, y: (
        inject_label_noise(y, 0.5, generator=torch.Generator().manual_seed(0)).noisy
    ),
    "LabelledTensors": lambda x, y: LabelledTensors(x, y).labels,
    "LabelledTensors.with_labels": lambda x, y: LabelledTensors(x, Y).with_labels(y).labels,
    "clean labels": lambda x, y: LabelledTensors(x, Y, y).clean_labels,
}

FOLDS = {"stratified_folds": lambda x, y: stratified_folds(y, 3)}

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint64)
HOT = F.one_hot(Y, C)
KINDS: dict[str, Any] = {
    **{str(dtype).removeprefix("torch."): Y.to(dtype) for dtype in INTEGERS},
    "NumPy": Y.numpy(),
    "NumPy, big endian": Y.numpy().astype(">i4"),
    "NumPy, backwards": Y.numpy()[::-1].copy()[::-1],
    "pandas": pd.Series(Y.numpy(), index=range(100, 100 + B)),
    "pandas Int64": pd.Series(Y.numpy(), dtype="Int64"),
    "pandas category": pd.Series(Y.numpy(), dtype="category"),
    "list": Y.tolist(),
    "tuple": tuple(Y.tolist()),
    "list of tensors": list(Y),
    "one-hot": HOT,
    "one-hot uint8": HOT.byte(),
    "one-hot bool": HOT.bool(),
    "one-hot NumPy": HOT.numpy(),
    "one-hot pandas": pd.get_dummies(pd.Series(Y.numpy())),
}


def close(found: Any, right: Any, **tolerance: float) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(right), **tolerance)


# Programs take time to make, and read labels as functions do.
FROM_PROGRAMS = ("FixMatch", "MeanTeacher", "MixMatch")
FEW_KINDS = ("uint8", "int32", "pandas", "list", "one-hot")
# All students read their batches alike.
READING = [tool for tool in MEANS | WHOLE | FOLDS if tool not in ("ICT", "PseudoLabel", "VAT")]
OWN = ("function", "own", "per sample")


@pytest.mark.parametrize("tool", READING)
def test_labels_of_every_kind_are_read_alike(tool: str) -> None:
    value = (MEANS | WHOLE | FOLDS)[tool]
    right = value(X, Y)
    program = tool in FROM_PROGRAMS or "Classifier" in tool or "Learner" in tool
    for kind, labels in KINDS.items():
        if program and kind not in FEW_KINDS:
            continue
        if "one-hot" in kind and any(word in tool for word in OWN):
            continue  # A loss of one's own may be one of several labels each.
        found = value(X, labels)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(right)), kind


@pytest.mark.parametrize("tool", READING)
def test_floating_one_hot_labels_are_read_as_classes_or_probabilities(tool: str) -> None:
    if any(word in tool for word in (*OWN, "class weights")):
        pytest.skip("what it makes of probabilities is a matter of the loss")
    value = (MEANS | WHOLE | FOLDS)[tool]
    # In double precision, rounding of one sum over classes in place of a look-up.
    close(value(X, HOT.double()), value(X, Y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tool", MEANS)
@pytest.mark.parametrize("mark", [-1, -100, "both"])
def test_samples_without_a_label_count_nowhere(tool: str, mark: int | str) -> None:
    value = MEANS[tool]
    labels = Y.clone()
    labels[MISSING] = torch.tensor([-1, -100, -100, -1]) if mark == "both" else mark
    # In double precision, rounding of sums in another order.
    right = value(X[KEPT], Y[KEPT])
    given = labels.to(torch.int8).numpy() if mark == -100 else labels
    close(value(X, given), right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tool", [t for t in MEANS if "confident_learning" not in t])
def test_a_batch_without_any_label_has_the_value_zero(tool: str) -> None:
    found = torch.as_tensor(MEANS[tool](X, torch.full_like(Y, -1)))
    if tool == "confident_thresholds":
        assert found.eq(2).all(), "no probability reaches the threshold"
    else:
        assert not found.any()


@pytest.mark.parametrize("tool", WHOLE)
@pytest.mark.parametrize("mark", [-1, -100])
def test_where_every_sample_needs_one_a_missing_label_is_named(tool: str, mark: int) -> None:
    labels = Y.clone()
    labels[4] = mark
    with pytest.raises((LossError, DataError), match=f"leave out samples.* {mark} at index 4"):
        WHOLE[tool](X, labels)


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
