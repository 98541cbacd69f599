"""What users get wrong about noise, consistency, ensembles, networks and plots: each is refused by
name, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.bad_input import Row, assert_refused
from support.bad_tools import (
    FEW,
    IMAGES,
    LABELS,
    LARGE,
    LINEAR,
    LOGITS,
    SHARES,
    generator,
    labelled,
    parts,
    refused,
    unknown,
)
from support.small import problem

from metaweight import (
    DataError,
    Engine,
    EngineConfig,
    LossError,
    consistency,
    data,
    ensembles,
    models,
    noise,
    plots,
)


def on_labels(make: Callable[[], Any], name: str) -> dict[str, Row]:
    """A loss on logits and labels, given labels that do not fit."""
    cases = {
        "labels: too large": ("span 5 to 7 … [0, 3)", LARGE),
        "labels: negative": ("span -5 to -3", LABELS - 5),
        "labels: floats": ("type torch.float32", LABELS.float()),
        "labels: fewer": ("shape (2,)", FEW),
    }
    return {
        f"{name}: {case}": refused(words, lambda labels=labels: make()(LOGITS, labels), LossError)
        for case, (words, labels) in cases.items()
    }


def paired() -> Any:
    return noise.mixup_loss(LOGITS, LABELS, LABELS, SHARES.unsqueeze(1))


def early_learning() -> Any:
    criterion = noise.EarlyLearningRegularisation(4, 3)
    return lambda logits, labels: criterion(logits, labels, [0, 1, 2, 3])


NOISE = {
    **on_labels(noise.SymmetricCrossEntropy, "SymmetricCrossEntropy"),
    **on_labels(noise.GeneralisedCrossEntropy, "GeneralisedCrossEntropy"),
    **on_labels(noise.HardBootstrappingLoss, "HardBootstrappingLoss"),
    **on_labels(noise.SoftBootstrappingLoss, "SoftBootstrappingLoss"),
    **on_labels(lambda: noise.OnlineConfidentLearning(3), "OnlineConfidentLearning"),
    **on_labels(early_learning, "EarlyLearningRegularisation"),
    "EarlyLearningRegularisation: samples": refused(
        "num_samples=x … at least 1 sample", lambda: noise.EarlyLearningRegularisation("x", 3)
    ),
    "EarlyLearningRegularisation: positions": refused(
        "num_samples=4) received indices from 0 to 4 … from 0",
        lambda: noise.EarlyLearningRegularisation(4, 3)(LOGITS, LABELS, [0, 1, 2, 4]),
        DataError,
    ),
    "EarlyLearningClassifier: criterion": refused(
        "EarlyLearningClassifier 'a' … WithCriterion",
        lambda: noise.EarlyLearningClassifier("a", **parts()),
    ),
    "CoTeachingClassifier: noise_rate": refused(
        "'a' (noise_rate=x, ramp_steps=1) … [0, 1)",
        lambda: noise.CoTeachingClassifier("a", noise_rate="x", ramp_steps=1, **parts()),
    ),
    "CoTeachingClassifier: module": refused(
        "'a' received a module of type Linear … NetworkPair(first, second)",
        lambda: noise.CoTeachingClassifier("a", noise_rate=0.2, ramp_steps=1, **parts()),
    ),
    "NetworkPair: text": refused(
        "NetworkPair received second='x'", lambda: noise.NetworkPair(LINEAR, "x")
    ),
    "NetworkPair: once": refused(
        "share parameters … from another seed", lambda: noise.NetworkPair(LINEAR, LINEAR)
    ),
    "co_teaching_loss: share": refused(
        "co_teaching_loss(kept='x') … [0, 1]",
        lambda: noise.co_teaching_loss(LOGITS, LOGITS, LABELS, "x"),
    ),
    "co_teaching_loss: shapes": refused(
        "shapes (4, 3) and (4, 2)",
        lambda: noise.co_teaching_loss(LOGITS, LOGITS[:, :2], LABELS, 0.5),
        LossError,
    ),
    "BootstrappedClassifier: unknown": unknown("beta", noise.BootstrappedClassifier),
    "ConfidenceLearner: unknown": unknown("classifier", noise.ConfidenceLearner),
    "MixupClassifier: unknown": unknown("alpha", noise.MixupClassifier),
    "GeneralisedCrossEntropy: q": refused("q", lambda: noise.GeneralisedCrossEntropy("x")),
    "SymmetricCrossEntropy: alpha": refused(
        "alpha", lambda: noise.SymmetricCrossEntropy(alpha="x")
    ),
    "HardBootstrappingLoss: beta": refused("beta", lambda: noise.HardBootstrappingLoss(beta="x")),
    "SoftBootstrappingLoss: beta": refused("beta", lambda: noise.SoftBootstrappingLoss(beta="x")),
    "OnlineConfidentLearningHook: no criterion": refused(
        "no OnlineConfidentLearning in the modules of problems chase",
        lambda: Engine(
            [problem()], EngineConfig(strategy="cpu"), hooks=[noise.OnlineConfidentLearningHook()]
        ).run(),
    ),
    "LearnedConcentration: initial": refused("x", lambda: noise.LearnedConcentration("x")),
    "LearnedConfidence: classes": refused("num_classes=x", lambda: noise.LearnedConfidence("x")),
    "LearnedTrust: initial": refused("x", lambda: noise.LearnedTrust("x")),
    "OnlineConfidentLearning: classes": refused(
        "num_classes=1.5", lambda: noise.OnlineConfidentLearning(1.5)
    ),
    "SpecialTokens: text": refused(
        "SpecialTokens(start='[CLS]') … integer", lambda: noise.SpecialTokens(start="[CLS]")
    ),
    "WithCriterion: text": refused(
        "WithCriterion received criterion='x'", lambda: noise.WithCriterion(LINEAR, "x")
    ),
    "confident_learning: length": refused(
        "2", lambda: noise.confident_learning(FEW, logits=LOGITS), ValueError
    ),
    "confident_learning: range": refused(
        "7", lambda: noise.confident_learning(LARGE, logits=LOGITS), ValueError
    ),
    "inject_label_noise: range": refused(
        "span 5 to 7",
        lambda: noise.inject_label_noise(LARGE, 0.2, num_classes=3, generator=generator()),
        ValueError,
    ),
    "inject_label_noise: rate": refused(
        "x",
        lambda: noise.inject_label_noise(LABELS, "x", num_classes=3, generator=generator()),
        ValueError,
    ),
    "inject_label_noise: generator": refused(
        "inject_label_noise received generator=3",
        lambda: noise.inject_label_noise(LABELS, 0.2, num_classes=3, generator=3),
    ),
    "mix_pairs: share": refused(
        "mix_pairs received d of shape (2,) for 4",
        lambda: noise.mix_pairs(LOGITS, LABELS, SHARES[:2], LABELS),
        DataError,
    ),
    "mix_pairs: labels": refused(
        "labels of shape (2,) for 4 inputs",
        lambda: noise.mix_pairs(LOGITS, FEW, SHARES, LABELS),
        DataError,
    ),
    "mix_pairs: partners": refused(
        "partners of shape (2,)", lambda: noise.mix_pairs(LOGITS, LABELS, SHARES, FEW), DataError
    ),
    "mixgen: none": refused("", lambda: noise.mixgen([{}, {}]), DataError),
    "mixup: alpha": refused("alpha=x", lambda: noise.mixup(LOGITS, LABELS, "x")),
    "mixup: integers": refused(
        "torch.int64 … floating", lambda: noise.mixup(LABELS, LABELS), DataError
    ),
    "mixup_accuracy: share": refused(
        "mixup_accuracy received d of shape (4, 1)",
        lambda: noise.mixup_accuracy(LOGITS, LABELS, LABELS, SHARES.unsqueeze(1)),
        DataError,
    ),
    "mixup_accuracy: labels": refused(
        "mixup_accuracy received labels of shape (2,) … for 4 rows",
        lambda: noise.mixup_accuracy(LOGITS, FEW, LABELS, SHARES),
        DataError,
    ),
    "mixup_loss: share": refused("mixup_loss received d of shape (4, 1) for 4", paired, DataError),
    "stratified_folds: seed": refused(
        "stratified_folds received seed='x'", lambda: noise.stratified_folds(LABELS, 2, seed="x")
    ),
    "stratified_folds: folds": refused("", lambda: noise.stratified_folds(LABELS, 1.5), ValueError),
}

CONSISTENCY = {
    "Affine: std": refused("std", lambda: consistency.Affine("x")),
    "Chain: transform": refused("Chain(transform=3) … function", lambda: consistency.Chain(3)),
    "CropFlip: padding": refused("padding", lambda: consistency.CropFlip(1.5)),
    "Cutout: size": refused("size", lambda: consistency.Cutout("x")),
    "Erasing: probability": refused("probability", lambda: consistency.Erasing("x")),
    "GaussianNoise: std": refused("std", lambda: consistency.GaussianNoise("x")),
    "ICT: alpha": refused("alpha", lambda: consistency.ICT(alpha="x")),
    "VAT: epsilon": refused("epsilon", lambda: consistency.VAT(epsilon="x")),
    "MixMatch: temperature": refused("temperature", lambda: consistency.MixMatch(temperature="x")),
    "PseudoLabel: threshold": refused("threshold", lambda: consistency.PseudoLabel(threshold="x")),
    "FixMatch: threshold": refused("threshold", lambda: consistency.FixMatch(threshold=1.5)),
    "Ramp: weight": refused("Ramp(weight=x)", lambda: consistency.Ramp(weight="x")),
    "Ramp: end": refused("Ramp(end='x') is not a number", lambda: consistency.Ramp(end="x")),
    "RampHook: problem": refused(
        "RampHook received problem=3", lambda: consistency.RampHook(3, consistency.Ramp())
    ),
    "RampHook: ramp": refused(
        "RampHook received ramp=3 … Ramp(weight=8.0)", lambda: consistency.RampHook("a", 3)
    ),
    "ramp: length": refused("0", lambda: consistency.ramp("linear", 1, 0)),
    "Probabilities: vector": refused("", lambda: consistency.Probabilities(SHARES), ValueError),
    "adversarial_direction: start": refused(
        "start of shape (4,) for inputs of shape (4, 3)",
        lambda: consistency.adversarial_direction(LINEAR, LOGITS, SHARES),
        DataError,
    ),
    "sharpen: temperature": refused(
        "temperature", lambda: consistency.sharpen(LOGITS.softmax(1), "x")
    ),
    "preset: method": refused("'x'", lambda: consistency.preset("x", "y")),
    "mse: classes": refused("", lambda: consistency.mse(LOGITS, LOGITS[:, :2]), ValueError),
    "kl: classes": refused("", lambda: consistency.kl(LOGITS, LOGITS[:, :2]), ValueError),
    "js: classes": refused("", lambda: consistency.js(LOGITS, LOGITS[:, :2]), ValueError),
    "l1: classes": refused("", lambda: consistency.l1(LOGITS, LOGITS[:, :2]), ValueError),
    "entropy: vector": refused("", lambda: consistency.entropy(SHARES), ValueError),
    "LearnedConsistencyWeight: initial": refused(
        "x", lambda: consistency.LearnedConsistencyWeight("x")
    ),
    "LearnedThreshold: initial": refused("x", lambda: consistency.LearnedThreshold("x")),
    "UnlabelledWeightNet: hidden": refused(
        "", lambda: consistency.UnlabelledWeightNet(hidden_size="x")
    ),
    "SampleWeightTable: samples": refused("x", lambda: consistency.SampleWeightTable("x")),
}

ENSEMBLES = {
    "EnsembleHook: action": refused(
        "action", lambda: ensembles.EnsembleHook(ensembles.OnlineEnsemble(), "a", action="x")
    ),
    "MixtureWeightNet: members": refused("x", lambda: ensembles.MixtureWeightNet("x")),
    "MemberMixture: members": refused("0", lambda: ensembles.MemberMixture(0)),
    "ScoreWeightNet: members": refused("x", lambda: ensembles.ScoreWeightNet("x")),
    "OnlineEnsemble: text": refused("str", lambda: ensembles.OnlineEnsemble(["a"])),
    "ScoreWeightedClassifier: scores": refused(
        "'a' received scores of shape (2, 5, 8, 8)",
        lambda: ensembles.ScoreWeightedClassifier("a", weights="b", scores=IMAGES),
    ),
    "resample: scores": refused("", lambda: ensembles.resample(LOGITS, LABELS), ValueError),
    "SubsetLoader: loader": refused(
        "SubsetLoader received a loader of type list",
        lambda: ensembles.SubsetLoader([1], LABELS),
        DataError,
    ),
    "cross_entropy_scores: length": refused(
        "shape (2,) … 4 rows", lambda: ensembles.cross_entropy_scores(LOGITS, FEW), LossError
    ),
    "subset_loader: indices": refused(
        "",
        lambda: ensembles.subset_loader(data.TensorLoader(labelled(), 2), LABELS + 99),
        ValueError,
    ),
    "reweight: mode": refused("'x'", lambda: ensembles.reweight(SHARES, mode="x")),
}

MODELS = {
    f"{kind.__name__}: {case}": row
    for kind, channels in (
        (models.ConvNet6, 3),
        (models.DigitsNet, 1),
        (models.PreActResNet18, 3),
        (models.ResNet18, 3),
        (models.ResNet32, 3),
        (models.WideResNet28x2, 3),
        (models.WideResNet28x10, 3),
    )
    for case, row in {
        "classes": refused(
            f"{kind.__name__}(num_classes=0) … at least 1", lambda kind=kind: kind(0)
        ),
        "generator": refused(
            f"{kind.__name__} received generator=3", lambda kind=kind: kind(generator=3)
        ),
        "channels": Row(
            DataError,
            f"{kind.__name__} received inputs of shape (2, 5, 8, 8) … (B, {channels}, H, W)",
            lambda _, kind=kind: kind()(IMAGES),
            draws=True,
        ),
    }.items()
}

PLOTS = {
    "per_class_accuracy: list": refused(
        "accuracies is of type list … dictionary", lambda: plots.per_class_accuracy([0.1])
    ),
    "per_class_accuracy: length": refused(
        "", lambda: plots.per_class_accuracy({"a": [0.1, 0.2]}, class_names=["x"])
    ),
    "training_curves: length": refused("", lambda: plots.training_curves({"a": ([1, 2], [0.1])})),
    "weight_against_loss: length": refused(
        "", lambda: plots.weight_against_loss([0.1, 0.2], {"a": [0.1]})
    ),
    "weight_histogram: bins": refused(
        "weight_histogram(bins=0) … at least 1",
        lambda: plots.weight_histogram([0.1, 0.2], [0, 1], bins=0),
    ),
    "weight_histogram: length": refused(
        "weights has 2 values … 1 labels", lambda: plots.weight_histogram([0.1, 0.2], [0])
    ),
}

TABLE = NOISE | CONSISTENCY | ENSEMBLES | MODELS | PLOTS


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_by_name_and_draws_nothing(name: str) -> None:
    assert_refused(TABLE[name])
