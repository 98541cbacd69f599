"""Batches as people have them: sequences, mappings and named tuples mean the same everywhere."""

from __future__ import annotations

from collections import UserDict, namedtuple
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from support.semi_supervised import network, run, student
from support.zoo import over
from torch import Tensor, nn

from metaweight import ConfigurationError, DataError, ImplicitProblem, LossError
from metaweight.consistency import FixMatch, MixMatch
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.ensembles import OnlineEnsemble, ScoreWeightedClassifier
from metaweight.noise import (
    BootstrappedClassifier,
    ConfidenceLearner,
    ConfidentClassifier,
    LearnedConcentration,
    LearnedConfidence,
    LearnedTrust,
    MixupClassifier,
    OnlineConfidentLearning,
    WithCriterion,
    inject_label_noise,
)
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

B, FEATURES, C = 8, 6, 3
X = torch.randn(B, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(B) % C
PLACES = torch.arange(B).flip(0)

Named = namedtuple("Named", "image label index")
Backwards = namedtuple("Backwards", "targets index inputs")
Unnamed = namedtuple("Unnamed", "a b c")


class Encoding(UserDict):  # type: ignore[type-arg]
    """Like a Hugging Face ``BatchEncoding``."""

    def to(self, device: Any) -> Encoding:
        return Encoding({key: value.to(device) for key, value in self.items()})


BATCHES: dict[str, Any] = {
    "list": [X, Y, PLACES],
    "dict": {"inputs": X, "labels": Y, "indices": PLACES},
    "dict, other names": {"idx": PLACES, "y": Y, "x": X},
    "dict, image and label": {"image": X, "label": Y, "index": PLACES},
    "dict, a name of one's own": {"pixels": X, "target": Y, "index": PLACES},
    "UserDict": UserDict(input=X, targets=Y, positions=PLACES),
    "BatchEncoding": Encoding(pixel_values=X, labels=Y, idx=PLACES),
    "named tuple": Named(X, Y, PLACES),
    "named tuple, backwards": Backwards(Y, PLACES, X),
    "named tuple without names": Unnamed(X, Y, PLACES),
}
UNREADABLE: dict[str, tuple[Any, str]] = {
    "a tensor": (X, r"a tensor of shape \(8, 6\)"),
    "one part": ((X,), r"a tuple of 1 parts \(Tensor\)"),
    "no label": ({"inputs": X, "mask": Y}, "a dict with 'inputs', 'mask'"),
    "two labels": ({"x": X, "y": Y, "labels": Y}, "a dict with 'x', 'y', 'labels'"),
    "labels alone": ({"labels": Y}, "a dict with 'labels'"),
    "samples": ([(x, y) for x, y in zip(X, Y, strict=True)], "a list of 8 parts .tuple, tuple"),
}


class ByName(nn.Module):
    """A network of two named inputs that returns what a Hugging Face model does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(batch_norm=False)

    def forward(self, first: Tensor, second: Tensor) -> Any:
        return namedtuple("Output", "loss logits")(None, self.net(first) * second)


class OfMapping(ByName):
    def forward(self, batch: Any) -> Any:  # type: ignore[override]
        return {"logits": super().forward(batch["first"], batch["second"]).logits}


class Upper(ImplicitProblem):
    """The squares of the parameters below."""

    def training_step(self, batch: Any) -> Tensor:
        del batch
        return sum((p**2).sum() for p in self.lower.module.parameters())  # type: ignore[return-value]


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        del batch
        return sum((p**2).sum() for p in self.module.parameters())  # type: ignore[return-value]


def seeded(make: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module: nn.Module = make().double()
    return module


def parts(module: nn.Module, batch: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return {"module": module, "optimizer": optimizer, "train_data_loader": [batch]}


def lower(
    batch: Any, make: Any, upper: Any = MetaWeightNet, net: Any = None, **settings: Any
) -> Any:
    """What a lower problem's parameters become in one step on a batch."""
    net = network(batch_norm=False) if net is None else net()
    problem = make("lower", **parts(net, batch), **settings)
    top = Upper("upper", **parts(seeded(upper), X))
    torch.default_generator.manual_seed(0)
    over(top, problem, train_iters=1).run()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def upper(batch: Any, make: Any, module: Any, **settings: Any) -> Any:
    """The loss of an upper problem on a batch."""
    problem = make("upper", classifier="lower", **parts(seeded(module), batch), **settings)
    below = Lower("lower", **parts(network(batch_norm=False), X))
    over(problem, below, train_iters=1)
    return problem.training_step(problem.get_batch())


def semi_supervised(batch: Any, method: Any, **settings: Any) -> Any:
    net = network(batch_norm=False)
    problem = student(
        method, net=net, loader=([batch], [batch]), augment=None,
        strong_augment=lambda x: x + 1, **settings,
    )  # fmt: skip
    torch.default_generator.manual_seed(0)
    run(problem, 1)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def criterion() -> nn.Module:
    return WithCriterion(network(batch_norm=False), OnlineConfidentLearning(C))


SCORES = torch.linspace(0, 2, B, dtype=torch.float64)
TOOLS: dict[str, Any] = {
    "WeightedClassifier": partial(lower, make=partial(WeightedClassifier, weights="upper")),
    "ScoreWeightedClassifier": partial(
        lower, make=partial(ScoreWeightedClassifier, weights="upper", scores=SCORES)
    ),
    "BootstrappedClassifier": partial(
        lower, make=partial(BootstrappedClassifier, beta="upper"), upper=LearnedTrust
    ),
    "MixupClassifier": partial(
        lower, make=partial(MixupClassifier, alpha="upper"), upper=LearnedConcentration
    ),
    "ConfidentClassifier": partial(
        lower,
        make=partial(ConfidentClassifier, confidence="upper"),
        upper=partial(LearnedConfidence, C),
        net=criterion,
    ),
    "WeightLearner": partial(upper, make=WeightLearner, module=MetaWeightNet),
    "ConfidenceLearner": partial(
        upper, make=ConfidenceLearner, module=partial(LearnedConfidence, C)
    ),
    "FixMatch": partial(semi_supervised, method=FixMatch(threshold=0.4)),
    "MixMatch": partial(semi_supervised, method=MixMatch()),
    "OnlineEnsemble": lambda batch, **settings: OnlineEnsemble([network()]).score(
        [batch], **settings
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_batch_of_every_kind_means_the_same(tool: str) -> None:
    right = TOOLS[tool]((X, Y, PLACES))
    for kind, batch in BATCHES.items():
        assert torch.equal(TOOLS[tool](batch), right), kind


@pytest.mark.parametrize("tool", TOOLS)
def test_labels_can_have_a_name_or_a_place_of_their_own(tool: str) -> None:
    right = TOOLS[tool]((X, Y, PLACES))
    named = {"inputs": X, "diagnosis": Y, "indices": PLACES}
    assert torch.equal(TOOLS[tool](named, labels_key="diagnosis"), right)
    assert torch.equal(TOOLS[tool]((X, Y, PLACES), labels_key=-2), right)
    missing = {"inputs": X, "labels": Y, "indices": PLACES}
    with pytest.raises(DataError, match=r"'labels', 'indices' and labels_key='diagnosis'; give"):
        TOOLS[tool](missing, labels_key="diagnosis")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_batch_that_cannot_be_read_is_described(tool: str) -> None:
    for kind, (batch, message) in UNREADABLE.items():
        with pytest.raises(DataError, match=f"received {message}.*; give batches") as error:
            TOOLS[tool](batch)
        assert "(inputs, labels)" in str(error.value) and "labels_key=" in str(error.value), kind


@pytest.mark.parametrize("net", [ByName, OfMapping])
def test_several_named_inputs_are_given_by_name(net: Any) -> None:
    scale = torch.rand(B, 1, dtype=torch.float64)
    batch = {"first": X, "second": scale, "labels": Y, "idx": PLACES}
    logits = network(batch_norm=False)(X) * scale
    losses = F.cross_entropy(logits, Y, reduction="none")
    found = OnlineEnsemble([net()]).score([batch])
    # In double precision, rounding of torch's two ways to a cross-entropy.
    torch.testing.assert_close(found, losses, rtol=1e-12, atol=1e-12)

    problem = WeightedClassifier("lower", weights="upper", **parts(net(), batch))
    over(Upper("upper", **parts(seeded(MetaWeightNet), X)), problem, train_iters=1)
    assert torch.equal(problem.sample_losses(problem.get_batch()), losses)
    # What the network has no argument for is left out.
    if net is ByName:
        assert torch.equal(problem.sample_losses(batch | {"text": ["a"] * B}), losses)


def test_indices_of_a_mapping_have_a_name() -> None:
    ensemble = OnlineEnsemble([network()])
    batch = {"x": X, "y": Y, "number": PLACES}
    whole = ensemble.score([(X, Y, PLACES)], index=2)
    named = {"inputs": X, "labels": Y, "indices": PLACES}
    assert torch.equal(ensemble.score([named], index="indices"), whole)
    with pytest.raises(DataError, match=r"index='places' was given, but .* 'x', 'y', 'number'"):
        ensemble.score([batch], index="places")


def per_sample(z: Tensor, y: Tensor) -> Tensor:
    return -z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)


def keywords(z: Tensor, y: Tensor, **settings: Any) -> Tensor:
    return F.cross_entropy(z, y, **settings)


class PerSample(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return per_sample(z, y)


class Whole(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return per_sample(z, y).mean()


LOSSES = {
    "module": nn.CrossEntropyLoss(),
    "module, none": nn.CrossEntropyLoss(reduction="none"),
    "function": per_sample,
    "module of one's own": PerSample(),
    "partial": partial(F.cross_entropy, label_smoothing=0.0),
    "keywords": keywords,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_can_be_any_that_gives_one_number_per_sample(loss: str) -> None:
    # In double precision, rounding of one's own logarithm.
    for tool in ("WeightedClassifier", "MixupClassifier", "WeightLearner"):
        right = TOOLS[tool]((X, Y))
        found = TOOLS[tool]((X, Y), loss=LOSSES[loss])
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    given = LOSSES[loss]
    assert (
        not isinstance(given, nn.CrossEntropyLoss)
        or given.reduction == loss.rsplit(", ", maxsplit=1)[-1]
        or (given.reduction == "mean")
    ), "the loss given is left as it was"


@pytest.mark.parametrize("tool", ["WeightedClassifier", "MixupClassifier"])
def test_a_loss_of_one_number_for_a_batch_is_refused(tool: str) -> None:
    for loss in (Whole(), Whole().forward):
        message = rf"loss given to {tool} 'lower' returned shape \(\) for 8 samples.*reduction="
        with pytest.raises(LossError, match=message):
            TOOLS[tool]((X, Y), loss=loss)
    with pytest.raises(
        ConfigurationError, match=r"the class CrossEntropyLoss.*CrossEntropyLoss\(\)"
    ):
        TOOLS[tool]((X, Y), loss=nn.CrossEntropyLoss)


GIVEN: dict[str, tuple[Any, Any]] = {
    "tensors": (X, Y),
    "NumPy": (X.numpy(), Y.numpy()),
    "read-only": (np.broadcast_to(X.numpy(), X.shape), np.broadcast_to(Y.numpy(), Y.shape)),
    "pandas": (pd.DataFrame(X.numpy()), pd.Series(Y.numpy())),
    "one-hot": (X, F.one_hot(Y, C)),
    "lists": (X.float().tolist(), Y.tolist()),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_labelled_data_are_made_of_what_people_have(kind: str) -> None:
    data = LabelledTensors(*GIVEN[kind])
    assert torch.equal(data.inputs, X.float() if kind == "lists" else X)
    assert torch.equal(data.labels, Y) and data.labels.dtype == torch.int64
    assert torch.equal(data.clean_labels, Y) and torch.equal(data.indices, torch.arange(B))
    assert data.num_classes == C
    assert data.labels.data_ptr() != data.clean_labels.data_ptr()
    inputs, labels = next(iter(TensorLoader(data, B, shuffle=False)))
    assert torch.equal(inputs, data.inputs) and torch.equal(labels, Y)
    noisy = data.with_labels(inject_label_noise(data, 0.5, generator=generator()).noisy.numpy())
    assert int(noisy.wrong_labels.sum()) == int((noisy.labels != Y).sum()) > 0


def test_data_that_are_no_numbers_are_refused() -> None:
    for given in ([["a"], ["b"]], [[1.0], [1.0, 2.0]], pd.DataFrame({"a": ["x", "y"]})):
        with pytest.raises(DataError, match=r"received inputs of type .* give"):
            LabelledTensors(given, [0, 1])
    with pytest.raises(ValueError, match=r"labels has shape \(3,\) but inputs holds 2 samples"):
        LabelledTensors([[1.0], [2.0]], [0, 1, 0])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_takes_the_number_of_classes_from_what_has_it() -> None:
    noise = partial(inject_label_noise, generator=None)
    data = LabelledTensors(X, Y, num_classes=5)
    matrix = torch.full((5, 5), 0.2)
    for labels, arguments in (
        (data, {"rate": 1.0}),
        (F.one_hot(Y, 5), {"rate": 1.0}),
        (Y, {"transition": matrix}),
        (Y.tolist(), {"transition": matrix.tolist()}),
        (Y.int(), {"rate": 1.0, "kind": "flip", "flip_to": [4, 3, 2, 1, 0]}),
    ):
        found = noise(labels, **arguments | {"generator": generator()})
        right = noise(Y, **arguments | {"generator": generator()}, num_classes=5)
        assert torch.equal(found.noisy, right.noisy) and torch.equal(found.clean, Y)
    largest = noise(Y, 1.0, kind="uniform_exclusive", generator=generator()).noisy
    assert largest.max() == 2
    with pytest.raises(ValueError, match="num_classes=1 was given"):
        noise([0, 0], 0.5, generator=generator())
