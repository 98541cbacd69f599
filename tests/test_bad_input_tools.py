"""What users get wrong about the tools beside a program: data, noise, weights, averages, ensembles,
consistency, networks and drawings. Each is refused by name, before anything is drawn."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bad_input import Row, assert_refused
from support.small import problem
from torch import nn

from metaweight import (
    SAMA,
    AdaptiveInterval,
    ConfigurationError,
    ConjugateGradient,
    DataError,
    EarlyStopping,
    Engine,
    EngineConfig,
    FiniteDifference,
    GraphError,
    HypergradientCheck,
    LastLayers,
    LossError,
    Neumann,
    NonFinite,
    NormLogger,
    Nystrom,
    Penalty,
    Problem,
    ProgressBar,
    Reinforce,
    ReweightedProblem,
    Reweighting,
    SampledLayers,
    Unroll,
    WeightCollapse,
    ZeroOrder,
    averaging,
    consistency,
    data,
    ensembles,
    models,
    noise,
    plots,
    weighting,
)

LOGITS = torch.arange(12.0).reshape(4, 3)
LABELS = torch.tensor([0, 1, 2, 0])
SHARES = torch.tensor([0.2, 0.4, 0.6, 0.8])
IMAGES = torch.zeros(2, 5, 8, 8)
LINEAR = nn.Linear(1, 1)
WEIGHT_NET = weighting.MetaWeightNet()
CLASS_AWARE = weighting.ClassAwareWeightNet(torch.arange(3))
LARGE, FEW = LABELS + 5, LABELS[:2]


def labelled(number: int = 12, **changes: Any) -> data.LabelledTensors:
    labels = torch.arange(number) % 3
    parts = {
        "inputs": torch.zeros(number, 1, 8, 8),
        "labels": labels,
        "clean_labels": labels.clone(),
        "indices": torch.arange(number),
        "num_classes": 3,
    }
    return data.LabelledTensors(**(parts | changes))  # type: ignore[arg-type]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def refused(
    words: str, act: Callable[[], object], error: type[Exception] = ConfigurationError
) -> Row:
    return Row(error, words, lambda _: act())


def engine(*problems: Any) -> Engine:
    return Engine(problems, EngineConfig(strategy="cpu", train_iters=1))


def parts() -> dict[str, Any]:
    optimizer = torch.optim.SGD(LINEAR.parameters(), 0.1)
    return {"module": LINEAR, "optimizer": optimizer, "train_data_loader": [torch.ones(1, 1)]}


def unknown(argument: str, kind: Any) -> Row:
    """A problem that is told of a peer by a name that no problem of its engine has."""
    words = f"'a' was made with {argument}='b', which is none of the other … (chase)"
    return refused(
        words, lambda: engine(kind("a", **{argument: "b"}, **parts()), problem()), GraphError
    )


CORE = {
    "AdaptiveInterval: upper": refused(
        "AdaptiveInterval(upper=3) … name", lambda: AdaptiveInterval(3)
    ),
    "AdaptiveInterval: text": refused(
        "most=x … at least 1", lambda: AdaptiveInterval("u", most="x")
    ),
    "ConjugateGradient: damping": refused(
        "ConjugateGradient(damping='x') … at least 0", lambda: ConjugateGradient(damping="x")
    ),
    "EarlyStopping: metric": refused("EarlyStopping(metric=3)", lambda: EarlyStopping(3)),
    "FiniteDifference: alpha": refused(
        "FiniteDifference(alpha='x') … positive", lambda: FiniteDifference(alpha="x")
    ),
    "FiniteDifference: multitask": refused(
        "FiniteDifference(multitask='no') … True or False", lambda: FiniteDifference(multitask="no")
    ),
    "HypergradientCheck: tolerance": refused(
        "HypergradientCheck(tolerance='x') … above 0", lambda: HypergradientCheck(tolerance="x")
    ),
    "Problem: name": refused("Problem(name=3) … identifier", lambda: Problem(3)),
    "ProgressBar: description": refused("ProgressBar(description=3)", lambda: ProgressBar(3)),
    "ReweightedProblem: no losses": refused(
        "Problem 'a' has no sample_losses; define it",
        lambda: engine(ReweightedProblem("a", **parts())),
        GraphError,
    ),
    "LastLayers: none": refused("LastLayers(number=0) … at least 1", lambda: LastLayers(0)),
    "Neumann: alpha": refused("Neumann(alpha=None) … above 0", lambda: Neumann(alpha=None)),
    "NonFinite: policy": refused(
        "NonFinite(policy='warn') … raise, skip, stop", lambda: NonFinite("warn")
    ),
    "NormLogger: every": refused("NormLogger(every=0.5) … at least 1", lambda: NormLogger(0.5)),
    "Nystrom: rank": refused("Nystrom(rank='x') … at least 1", lambda: Nystrom(rank="x")),
    "Penalty: strength": refused("Penalty(strength='x') … positive", lambda: Penalty(strength="x")),
    "Reinforce: samples": refused("samples='x' … at least 2", lambda: Reinforce(samples="x")),
    "Reweighting: alpha": refused(
        "Reweighting(alpha='x') … positive", lambda: Reweighting(alpha="x")
    ),
    "SAMA: alpha": refused("SAMA(alpha='x') … positive", lambda: SAMA(alpha="x")),
    "SampledLayers: seed": refused("seed='x' … integer", lambda: SampledLayers(1, seed="x")),
    "Unroll: steps": refused("Unroll(steps=1.5) … integer", lambda: Unroll(steps=1.5)),
    "WeightCollapse: threshold": refused(
        "WeightCollapse('p' … zero=x … at least 0", lambda: WeightCollapse("p", zero="x")
    ),
    "ZeroOrder: radius": refused("ZeroOrder(radius='x') … positive", lambda: ZeroOrder(radius="x")),
}

WEIGHTING = {
    "ClassAwareWeightNet: groups": refused(
        "groups of shape (2, 2)", lambda: weighting.ClassAwareWeightNet(torch.ones(2, 2).long())
    ),
    "ClassAwareWeightNet: classes": refused(
        "classes of shape (2,) … for 4 losses",
        lambda: CLASS_AWARE(SHARES, FEW),
        LossError,
    ),
    "ClassAwareWeightNet: floats": refused(
        "type torch.float32 for 4 losses",
        lambda: CLASS_AWARE(SHARES, SHARES),
        LossError,
    ),
    "MetaWeightNet: hidden_size": refused(
        "hidden_size=x … at least 1", lambda: weighting.MetaWeightNet("x")
    ),
    "MetaWeightNet: losses": refused(
        "losses of shape (4, 3) … one loss per sample",
        lambda: WEIGHT_NET(LOGITS),
        LossError,
    ),
    "MetaWeightNet: integers": refused(
        "type torch.int64 … one loss per sample",
        lambda: WEIGHT_NET(LABELS),
        LossError,
    ),
    "WeightLearner: classifier": refused(
        "WeightLearner 'a' (classifier=3)", lambda: weighting.WeightLearner("a", classifier=3)
    ),
    "WeightLearner: unknown": unknown("classifier", weighting.WeightLearner),
    "WeightedClassifier: weights": refused(
        "WeightedClassifier 'a' (weights=None)",
        lambda: weighting.WeightedClassifier("a", weights=None),
    ),
    "WeightedClassifier: unknown": unknown("weights", weighting.WeightedClassifier),
    "class_balanced_weights: list": refused(
        "counts of shape list … torch.bincount", lambda: weighting.class_balanced_weights([1, 2])
    ),
    "class_balanced_weights: negative": refused(
        "at least 0 per class", lambda: weighting.class_balanced_weights(torch.tensor([-1, 3]))
    ),
    "class_balanced_weights: beta": refused(
        "beta=x … [0, 1]", lambda: weighting.class_balanced_weights(LABELS, "x")
    ),
    "class_size_groups: matrix": refused(
        "class_size_groups … shape (2, 2)", lambda: weighting.class_size_groups(torch.ones(2, 2))
    ),
    "class_size_groups: groups": refused(
        "num_groups=0 … at least 1", lambda: weighting.class_size_groups(LABELS, 0)
    ),
    "focal_loss: labels": refused(
        "span 5 to 7 … [0, 3)", lambda: weighting.focal_loss(LOGITS, LARGE), LossError
    ),
    "focal_loss: length": refused(
        "shape (2,) … 4 rows", lambda: weighting.focal_loss(LOGITS, FEW), LossError
    ),
    "focal_loss: gamma": refused(
        "gamma=nan … gamma >= 0", lambda: weighting.focal_loss(LOGITS, LABELS, torch.nan)
    ),
    "normalise_weights: integers": refused(
        "normalise_weights received torch.int64",
        lambda: weighting.normalise_weights(LABELS),
        LossError,
    ),
}

AVERAGING = {
    "EMA: model": refused("str", lambda: averaging.EMA("x")),
    "EMA: beta": refused("beta=x", lambda: averaging.EMA(LINEAR, "x")),
    "EMAHook: problem": refused(
        "EMAHook received problem=3 … its name", lambda: averaging.EMAHook(3)
    ),
    "EMAHook: validate_teacher": refused(
        "EMAHook(validate_teacher='no')", lambda: averaging.EMAHook("a", validate_teacher="no")
    ),
}

DATA = {
    "LabelledTensors: lists": refused(
        "LabelledTensors received labels of type list … torch.as_tensor",
        lambda: labelled(labels=[0]),
        DataError,
    ),
    "LabelledTensors: range": refused(
        "labels span … num_classes=2", lambda: labelled(num_classes=2), ValueError
    ),
    "LabelledTensors: length": refused(
        "indices has shape (3,) … holds 12 samples",
        lambda: labelled(indices=torch.arange(3)),
        ValueError,
    ),
    "LabelledTensors: classes": refused(
        "num_classes=x", lambda: labelled(num_classes="x"), ValueError
    ),
    "Normalise: number": refused(
        "Normalise(mean=0.5) … per channel", lambda: data.Normalise(0.5, 0.5)
    ),
    "Normalise: channels": refused(
        "(2, 5, 8, 8) … 3 channels",
        lambda: data.Normalise([0.5] * 3, [0.2] * 3)(IMAGES),
        ValueError,
    ),
    "Pipeline: step": refused("Pipeline(step=3) … function", lambda: data.Pipeline(3)),
    "RandomCropFlip: padding": refused("padding=1.5", lambda: data.RandomCropFlip(1.5), ValueError),
    "RandomCropFlip: generator": refused(
        "RandomCropFlip received generator=3", lambda: data.RandomCropFlip(generator=3)
    ),
    "SampleLoader: data": refused(
        "dataset of type int", lambda: data.SampleLoader(3, 2), ValueError
    ),
    "SampleLoader: batch_size": refused(
        "batch_size=2.5", lambda: data.SampleLoader([1, 2], 2.5), ValueError
    ),
    "SampleLoader: seed": refused(
        "SampleLoader received seed='x'", lambda: data.SampleLoader([1, 2], 2, seed="x")
    ),
    "SampleLoader: collate_fn": refused(
        "SampleLoader(collate_fn=3) … function", lambda: data.SampleLoader([1, 2], 2, collate_fn=3)
    ),
    "SampleLoader: device": refused(
        "SampleLoader received device='gpu'", lambda: data.SampleLoader([1, 2], 2, device="gpu")
    ),
    "TensorLoader: data": refused(
        "TensorLoader … type Tensor … LabelledTensors",
        lambda: data.TensorLoader(LOGITS, 2),
        DataError,
    ),
    "TensorLoader: batch_size": refused(
        "batch_size=x", lambda: data.TensorLoader(labelled(), "x"), ValueError
    ),
    "TensorLoader: generator": refused(
        "TensorLoader received generator=3", lambda: data.TensorLoader(labelled(), 2, generator=3)
    ),
    "TensorLoader: transform": refused(
        "TensorLoader(transform=3) … function",
        lambda: data.TensorLoader(labelled(), 2, transform=3),
    ),
    "TensorLoader: device": refused(
        "TensorLoader received device='cuda:77'",
        lambda: data.TensorLoader(labelled(), 2, device="cuda:77"),
    ),
    "crop_flip: offsets": refused(
        "offsets of shape (3, 2) … 2 images",
        lambda: data.crop_flip(IMAGES, torch.zeros(3, 2).long(), torch.zeros(2), 1),
        DataError,
    ),
    "load_cifar: name": refused(
        "'cifar7'", lambda: data.load_cifar("cifar7", "nowhere"), ValueError
    ),
    "load_digits: seed": refused(
        "load_digits received seed='x'", lambda: data.load_digits(seed="x")
    ),
    "load_digits: size": refused("test", lambda: data.load_digits(1.5), ValueError),
    "load_svhn: root": refused(
        "nowhere", lambda: data.load_svhn("nowhere"), data.DatasetUnavailableError
    ),
    "long_tailed: generator": refused(
        "generator=3 … torch.Generator", lambda: data.long_tailed(labelled(30), 2.0, generator=3)
    ),
    "long_tailed: factor": refused(
        "x", lambda: data.long_tailed(labelled(30), "x", generator=generator()), ValueError
    ),
    "long_tailed_counts: classes": refused(
        "num_classes=1.5", lambda: data.long_tailed_counts(100, 10.0, 1.5), ValueError
    ),
    "meta_split: too many": refused(
        "100 samples … has only 4",
        lambda: data.meta_split(labelled(), 100, generator=generator()),
        ValueError,
    ),
    "meta_split: generator": refused(
        "generator=None", lambda: data.meta_split(labelled(), 1, generator=None)
    ),
    "out_of_distribution_pool: share": refused(
        "share=x",
        lambda: data.out_of_distribution_pool(
            data.semi_supervised_split(labelled(), 3, generator=generator()),
            [0],
            "x",
            generator=generator(),
        ),
        ValueError,
    ),
    "semi_supervised_split: labelled": refused(
        "1.5 labelled",
        lambda: data.semi_supervised_split(labelled(), 1.5, generator=generator()),
        ValueError,
    ),
    "semi_supervised_split: generator": refused(
        "semi_supervised_split received generator=3",
        lambda: data.semi_supervised_split(labelled(), 3, generator=3),
    ),
}


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


NOISE = {
    **on_labels(noise.SymmetricCrossEntropy, "SymmetricCrossEntropy"),
    **on_labels(noise.GeneralisedCrossEntropy, "GeneralisedCrossEntropy"),
    **on_labels(noise.HardBootstrappingLoss, "HardBootstrappingLoss"),
    **on_labels(noise.SoftBootstrappingLoss, "SoftBootstrappingLoss"),
    **on_labels(lambda: noise.OnlineConfidentLearning(3), "OnlineConfidentLearning"),
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
        "labels of shape (2,) for 4 rows",
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
    "Ramp: end": refused("Ramp(end='x') is no number", lambda: consistency.Ramp(end="x")),
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
        (models.DigitsNet, 1),
        (models.ResNet18, 3),
        (models.ResNet32, 3),
        (models.WideResNet28x2, 3),
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

TABLE = CORE | WEIGHTING | AVERAGING | DATA | NOISE | CONSISTENCY | ENSEMBLES | MODELS | PLOTS


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_by_name_and_draws_nothing(name: str) -> None:
    assert_refused(TABLE[name])


HERE = Path(__file__).parent
PACKAGES = ["", ".weighting", ".averaging", ".consistency", ".ensembles", ".noise", ".data"]
RESULTS = {"Preset", "HypergradientReport", "Status", "CrossValidated", "LabelIssues"}
"""What users are handed rather than make."""


def takes_something(thing: Any) -> bool:
    """Whether users give it something: no type alias, protocol, base class or named tuple."""
    if not isinstance(thing, type):
        return inspect.isfunction(thing)
    known = issubclass(thing, (BaseException, tuple)) or getattr(thing, "_is_protocol", False)
    return not known and not inspect.isabstract(thing) and thing.__name__ not in RESULTS


@pytest.mark.parametrize("package", [*PACKAGES, ".models", ".plots"])
def test_every_class_and_function_is_tried_with_something_wrong(package: str) -> None:
    tried = {name.split(":")[0] for name in TABLE}
    texts = [file.read_text() for file in HERE.rglob("test_*.py")]
    # What follows a refusal in its test, or stands in a table of them.
    refusals = [m.group() for t in texts for m in re.finditer(r"(raises|Row)\((.*\n){1,12}", t)]
    module = importlib.import_module(f"metaweight{package}")
    missing = [
        name
        for name in module.__all__
        if takes_something(getattr(module, name))
        and name not in tried
        and not any(re.search(rf"\b{name}\b", text) for text in refusals)
    ]
    assert not missing
