"""Devices such as MPS have no double precision: what is given in single is computed in single.

A mode refuses every operation that takes or makes a double-precision tensor, on whatever device.
Numbers that are gathered on the host are Python's or NumPy's, which it does not see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.covering import covering
from support.reweighting import Declared, Plain, program
from support.semi_supervised import labelled_batch, network, run, student, unlabelled_batch
from support.without_double import WithoutDouble
from torch import Tensor

from metaweight import (
    SAMA,
    AdaptiveInterval,
    Config,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    Neumann,
    NonFinite,
    NormLogger,
    Nystrom,
    Penalty,
    Reweighting,
    Unroll,
    VarianceReduction,
    WeightCollapse,
    ZeroOrder,
)
from metaweight.averaging import EMAHook
from metaweight.consistency import (
    DIVERGENCES,
    ICT,
    VAT,
    Affine,
    CropFlip,
    Cutout,
    Erasing,
    FixMatch,
    GaussianNoise,
    MeanTeacher,
    MixMatch,
    PiModel,
    Probabilities,
    PseudoLabel,
    Ramp,
    RampHook,
    learn_sample_weights,
    learn_threshold,
    learn_weight,
    sharpen,
)
from metaweight.data import LabelledTensors, long_tailed, meta_split, semi_supervised_split
from metaweight.ensembles import reweight
from metaweight.noise import (
    EarlyLearningRegularisation,
    GeneralisedCrossEntropy,
    HardBootstrappingLoss,
    LearnedConcentration,
    OnlineConfidentLearning,
    SoftBootstrappingLoss,
    SymmetricCrossEntropy,
    co_teaching_loss,
    inject_label_noise,
    mixup,
    mixup_accuracy,
    mixup_loss,
    stratified_folds,
)
from metaweight.weighting import (
    ClassAwareWeightNet,
    DeferredReweighting,
    LDAMLoss,
    LogitAdjustedLoss,
    MetaWeightNet,
    NormalisedLinear,
    SampleWeights,
    class_balanced_weights,
    class_size_groups,
    focal_loss,
    normalise_weights,
)


def test_the_mode_refuses_double_precision() -> None:
    with WithoutDouble(), pytest.raises(TypeError, match="double precision"):
        torch.ones(2).double()


METHODS = [
    FiniteDifference(),
    SAMA(),
    SAMA(preconditioner="exact"),
    Neumann(iterations=2, alpha=0.01),
    ConjugateGradient(iterations=2, damping=10.0),
    ConjugateGradient(iterations=2, damping=10.0, tolerance=1e-3),
    Nystrom(rank=3, damping=1.0),
    Penalty(steps=2),
    Penalty(steps=2, form="bome"),
    Unroll(),
    Unroll(memory="full"),
    Unroll(memory="auto"),
    Unroll(product="finite_difference"),
    Unroll(product="one_sided"),
    Unroll(product="forward_over_reverse"),
    ZeroOrder(samples=2),
]
NATIVE = [Reweighting(derivative=d) for d in ("central_difference", "one_sided", "forward_mode")]
WHOLE = [METHODS[0], Unroll(), NATIVE[0]]


@pytest.mark.parametrize(
    ("method", "precision"),
    covering({method: ["fp32", "bf16"] for method in (*METHODS, *NATIVE)}, whole=WHOLE),
    ids=repr,
)
def test_hypergradients(method: Any, precision: str) -> None:
    kind = Declared if method in NATIVE else Plain
    config = Config(type=method, unroll_steps=2, gradient_clipping=1.0, precision=precision)
    engine = program(kind, config=config, dtype=torch.float32, dropout=0.3)
    adam = torch.optim.Adam(engine.classifier.module.parameters(), lr=0.01)
    engine.classifier.set_optimizer(adam)
    engine.set_dependency(engine.dependencies)
    with WithoutDouble():
        for _ in range(4):
            engine.train_step()
    assert engine.judge.count == 2


def test_hooks() -> None:
    """Those that measure each step, and everything a run writes down."""
    hooks = [
        NonFinite("skip"),
        NormLogger(every=1),
        WeightCollapse("classifier", every=1),
        VarianceReduction(),
        AdaptiveInterval("judge"),
        EMAHook("classifier", beta=0.9),
        SampleWeights("classifier", 20, index=1),
    ]
    engine = program(Declared, dtype=torch.float32)
    problems = [engine.judge, engine.classifier]
    config = EngineConfig(train_iters=4, strategy="cpu", non_finite="ignore", progress=True)
    again = Engine(problems, config, engine.dependencies, hooks=hooks)
    with WithoutDouble():
        again.run()


X = torch.linspace(-1, 1, 240).reshape(60, 4).sin()
Y = torch.arange(60) % 3
LOGITS = torch.linspace(-2, 2, 180).reshape(60, 3).cos()
GIVEN = LabelledTensors(X, Y, Y, torch.arange(60), 3)
LABELLED = labelled_batch()[0].float(), labelled_batch()[1]
UNLABELLED = unlabelled_batch().float()
COUNTS = torch.tensor([5, 50, 500])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def learned_mixture() -> Tensor:
    alpha = LearnedConcentration(0.3)
    mixed = mixup(X, Y, alpha(), per_sample=True)
    mixup_loss(LOGITS * mixed.inputs.sum(), mixed.labels_a, mixed.labels_b, mixed.d).backward()
    return next(alpha.parameters()).grad


def transition() -> Tensor:
    matrix = torch.full((3, 3), 0.1) + 0.7 * torch.eye(3)
    return inject_label_noise(Y, transition=matrix, num_classes=3, generator=generator()).noisy


TOOLS: dict[str, Callable[[], Any]] = {
    "mixup": lambda: mixup(X, Y, 0.2).inputs,
    "mixup, per sample": lambda: mixup(X, Y, 0.2, per_sample=True, generator=generator()).d,
    "mixup, half precision": lambda: mixup(X.half(), Y, 0.2).d,
    "mixup, learned": learned_mixture,
    "mixup_accuracy": lambda: mixup_accuracy(LOGITS, Y, Y.flip(0), torch.tensor(0.3)),
    "class_balanced_weights": lambda: class_balanced_weights(COUNTS),
    "class_size_groups": lambda: class_size_groups(COUNTS, 2),
    "ClassAwareWeightNet": lambda: ClassAwareWeightNet(COUNTS)(LOGITS[:, 0].abs(), Y),
    "MetaWeightNet": lambda: normalise_weights(MetaWeightNet(4)(LOGITS[:, :1].abs())),
    "focal_loss": lambda: focal_loss(LOGITS, Y),
    "LogitAdjustedLoss": lambda: LogitAdjustedLoss(COUNTS)(LOGITS, Y),
    "LDAMLoss": lambda: LDAMLoss(COUNTS)(NormalisedLinear(4, 3)(X), Y),
    "DeferredReweighting": lambda: DeferredReweighting(focal_loss, COUNTS)(LOGITS, Y),
    "EarlyLearningRegularisation": lambda: EarlyLearningRegularisation(60, 3)(
        LOGITS, Y, torch.arange(60)
    ),
    "co_teaching_loss": lambda: co_teaching_loss(LOGITS, LOGITS.flip(1), Y, 0.7),
    "label noise": transition,
    "uniform noise": lambda: inject_label_noise(Y, 0.4, num_classes=3, generator=generator()).noisy,
    "stratified_folds": lambda: stratified_folds(Y, 3, seed=0),
    "GeneralisedCrossEntropy": lambda: GeneralisedCrossEntropy()(LOGITS, Y),
    "SymmetricCrossEntropy": lambda: SymmetricCrossEntropy()(LOGITS, Y),
    "SoftBootstrappingLoss": lambda: SoftBootstrappingLoss()(LOGITS, Y),
    "HardBootstrappingLoss": lambda: HardBootstrappingLoss()(LOGITS, Y),
    "OnlineConfidentLearning": lambda: OnlineConfidentLearning(3)(LOGITS, Y),
    "reweight": lambda: reweight(LOGITS[:, 0]),
    "long_tailed": lambda: long_tailed(GIVEN, 4, generator=generator()).inputs,
    "meta_split": lambda: meta_split(GIVEN, 3, generator=generator())[0].inputs,
    "semi_supervised_split": lambda: (
        semi_supervised_split(GIVEN, 9, validation=6, generator=generator()).labelled.inputs
    ),
    "sharpen": lambda: sharpen(LOGITS.softmax(1), 0.5),
    **{
        f"divergence {name}": lambda divergence=divergence: divergence(
            LOGITS, Probabilities(LOGITS.flip(0).softmax(1))
        )
        for name, divergence in DIVERGENCES.items()
    },
    **{
        type(changed).__name__: lambda changed=changed: changed(torch.rand(4, 3, 8, 8))
        for changed in (GaussianNoise(), Cutout(2), CropFlip(1), Affine(), Erasing(0.5))
    },
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools(name: str) -> None:
    with WithoutDouble():
        found = TOOLS[name]()
    if isinstance(found, Tensor) and found.is_floating_point():
        assert torch.isfinite(found).all()


METHODS_OF_CONSISTENCY = [
    PseudoLabel(),
    PiModel(),
    VAT(),
    MeanTeacher(),
    ICT(),
    ICT(per_sample=True),
    MixMatch(),
    FixMatch(),
]


@pytest.mark.parametrize("method", METHODS_OF_CONSISTENCY, ids=repr)
def test_semi_supervised_programs(method: Any) -> None:
    lower = student(method, net=network().float(), loader=([LABELLED], [UNLABELLED]))
    hooks = [RampHook("student", Ramp(2.0))]
    with WithoutDouble():
        run(lower, 2, *hooks)


@pytest.mark.parametrize("learn", [learn_weight, learn_threshold, learn_sample_weights])
def test_what_is_learned_of_them(learn: Any) -> None:
    lower = student(PseudoLabel(), net=network().float(), loader=([LABELLED], [UNLABELLED]))
    engine = learn(lower, [LABELLED], EngineConfig(train_iters=2, strategy="cpu"))
    with WithoutDouble():
        engine.run()


def test_double_precision_stays_where_it_is_given() -> None:
    assert mixup(X.double(), Y, 0.2).d.dtype == torch.float64
    assert mixup(X, Y, torch.tensor(0.2).double()).d.dtype == torch.float32
    # (1 - β) / (1 - βⁿ) scaled to mean 1, in Python's double precision.
    by_hand = [1e-4 / (1 - 0.9999**n) for n in (5, 50, 500)]
    scaled = [3 * each / sum(by_hand) for each in by_hand]
    assert class_balanced_weights(COUNTS).tolist() == pytest.approx(scaled, rel=1e-6)
