"""What users get wrong about methods, hooks, data, weights and averages: each is refused by name,
before anything is drawn. Others are in ``test_bad_input_methods.py``."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bad_input import assert_refused
from support.bad_tools import (
    CLASS_AWARE,
    FEW,
    IMAGES,
    LABELS,
    LARGE,
    LINEAR,
    LOGITS,
    SHARES,
    WEIGHT_NET,
    engine,
    generator,
    labelled,
    parts,
    refused,
    unknown,
)
from support.small import problem

from metaweight import (
    SAMA,
    AdaptiveInterval,
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
    VarianceReduction,
    WeightCollapse,
    ZeroOrder,
    averaging,
    data,
    weighting,
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
    "VarianceReduction: problems": refused(
        "VarianceReduction(problems=3) … list of names", lambda: VarianceReduction(3)
    ),
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
    "DeferredReweighting: criterion": refused(
        "DeferredReweighting received loss='x' … function",
        lambda: weighting.DeferredReweighting("x", SHARES),
    ),
    "DeferredReweighting: weights": refused(
        "weights of shape (4, 3) … per class",
        lambda: weighting.DeferredReweighting(weighting.focal_loss, LOGITS),
    ),
    "DeferredReweighting: classes": refused(
        "DeferredReweighting was made for 4 classes … (4, 3) … (B, 4)",
        lambda: weighting.DeferredReweighting(weighting.focal_loss, SHARES)(LOGITS, LABELS),
        LossError,
    ),
    "DeferredReweightingHook: start": refused(
        "DeferredReweightingHook(start='x') … share", lambda: weighting.DeferredReweightingHook("x")
    ),
    "DeferredReweightingHook: no criterion": refused(
        "found no DeferredReweighting in the modules of problems chase … WithCriterion",
        lambda: Engine(
            [problem()],
            EngineConfig(strategy="cpu"),
            hooks=[weighting.DeferredReweightingHook()],
        ).run(),
    ),
    "LDAMLoss: scale": refused(
        "LDAMLoss(max_margin=0.5, scale=x) … above 0",
        lambda: weighting.LDAMLoss([2, 1], scale="x"),
    ),
    "LDAMLoss: counts": refused(
        "LDAMLoss received counts with no sample of class 1", lambda: weighting.LDAMLoss([2, 0])
    ),
    "LDAMLoss: classes": refused(
        "LDAMLoss was made for 2 classes … (4, 3) … (B, 2)",
        lambda: weighting.LDAMLoss([2, 1])(LOGITS, LABELS),
        LossError,
    ),
    "LogitAdjustedLoss: tau": refused(
        "LogitAdjustedLoss(tau='x') … at least 0",
        lambda: weighting.LogitAdjustedLoss([2, 1], "x"),
    ),
    "LogitAdjustedLoss: counts": refused(
        "LogitAdjustedLoss received counts with no sample of class 0",
        lambda: weighting.LogitAdjustedLoss([0, 3]),
    ),
    "LogitAdjustedLoss: labels": refused(
        "span 5 to 7 … [0, 3)",
        lambda: weighting.LogitAdjustedLoss([3, 2, 1])(LOGITS, LARGE),
        LossError,
    ),
    "NormalisedLinear: features": refused(
        "NormalisedLinear(in_features=x, out_features=3) … at least 1",
        lambda: weighting.NormalisedLinear("x", 3),
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
        "counts … type list … 'a' at index 0", lambda: weighting.class_balanced_weights(["a", 2])
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
        "labels … type list … 'a' at index 0 … return_inverse=True",
        lambda: labelled(2, labels=["a", "b"]),
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


TABLE = CORE | WEIGHTING | AVERAGING | DATA


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_by_name_and_draws_nothing(name: str) -> None:
    assert_refused(TABLE[name])


HERE = Path(__file__).parent
PACKAGES = ["", ".weighting", ".averaging", ".consistency", ".ensembles", ".noise", ".data"]
RESULTS = {
    *("Preset", "HypergradientReport", "Status", "CrossValidated", "LabelIssues"),
    *("Consistency", "ConsistencyStep"),
    # What a hypergradient method of one's own takes and returns.
    *("Approximation", "ConvergedSolve", "Evaluation", "LinearSystem", "Recording", "curvature"),
}
"""What users are handed rather than make."""


def takes_something(thing: Any) -> bool:
    """Whether users give it something: no type alias, protocol, base class or named tuple."""
    if not isinstance(thing, type):
        return inspect.isfunction(thing) and thing.__name__ not in RESULTS
    known = issubclass(thing, (BaseException, tuple)) or getattr(thing, "_is_protocol", False)
    return not known and not inspect.isabstract(thing) and thing.__name__ not in RESULTS


@pytest.mark.parametrize("package", [*PACKAGES, ".models", ".plots"])
def test_every_class_and_function_is_tried_with_something_wrong(package: str) -> None:
    tried = {name.split(":")[0] for name in TABLE}
    texts = [file.read_text() for file in HERE.rglob("test_*.py")]
    # What follows a refusal in its test, or stands in a table of them.
    refusal = re.compile(r"((raises|Row|rows|refused|unknown)\(|for kind)(.*\n){1,12}")
    refusals = [found.group() for text in texts for found in refusal.finditer(text)]
    module = importlib.import_module(f"metaweight{package}")
    missing = [
        name
        for name in module.__all__
        if takes_something(getattr(module, name))
        and name not in tried
        and not any(re.search(rf"\b{name}\b", text) for text in refusals)
    ]
    assert not missing
