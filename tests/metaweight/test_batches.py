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
from support.batch_tools import (
    OF_ANY_INPUTS,
    PLACES,
    TOOLS,
    B,
    C,
    Encoding,
    ModelOutput,
    Output,
    Returning,
    Words,
    X,
    Y,
    pair,
    parts,
    plain,
    same,
    seeded,
)
from support.zoo import over
from torch import Tensor, nn

from metaweight import ConfigurationError, DataError, LossError
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.ensembles import OnlineEnsemble
from metaweight.noise import inject_label_noise
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

Named = namedtuple("Named", "image label index")
Backwards = namedtuple("Backwards", "targets index inputs")
Unnamed = namedtuple("Unnamed", "a b c")
Grouped = namedtuple("Grouped", "image label group index")


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
    "named tuple, another part before": Grouped(X, Y, 7 + Y, PLACES),
    "named tuple without names": Unnamed(X, Y, PLACES),
}
UNREADABLE: dict[str, tuple[Any, str, str]] = {
    "a tensor": (X, r"a tensor of shape \(8, 6\), without labels", "labels"),
    "one part": ((X,), r"a tuple of 1 parts \(Tensor\), without labels", "labels"),
    "no label": (
        {"inputs": X, "mask": Y},
        "a dict with 'inputs', 'mask', without labels",
        "labels",
    ),
    "two labels": (
        {"x": X, "y": Y, "labels": Y},
        "a dict with 'x', 'y', 'labels', of which labels and y may be labels",
        "labels",
    ),
    "labels alone": ({"labels": Y}, "a dict with 'labels', without inputs", "inputs"),
    "samples": (
        [(x, y) for x, y in zip(X, Y, strict=True)],
        "a list of 8 parts .tuple, tuple.*, without labels",
        "labels",
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_batch_of_every_kind_means_the_same(tool: str) -> None:
    right = TOOLS[tool]((X, Y, PLACES))
    for kind, batch in BATCHES.items():
        assert torch.equal(TOOLS[tool](batch), right), kind


OWN: dict[str, tuple[Any, dict[str, Any]]] = {
    "keys": (
        {"scan": X, "diagnosis": Y, "labels": 2 - Y, "id": X, "indices": PLACES},
        {"inputs": "scan", "labels": "diagnosis"},
    ),
    "a key": ({"inputs": X, "diagnosis": Y, "indices": PLACES}, {"labels": "diagnosis"}),
    "places": ((Y, X, PLACES), {"inputs": 1, "labels": 0}),
    "one place": ((Y, X, PLACES), {"inputs": 1}),
    "the other place": ((Y, X, PLACES), {"labels": 0}),
    "places from the end": ([X, Y, PLACES], {"inputs": -3, "labels": -2}),
    "a place from the end": ((Y, X, PLACES), {"labels": -3}),
    "names": (Unnamed(X, Y, PLACES), {"inputs": "a", "labels": "b"}),
    "functions": (
        {"study": {"scan": X}, "diagnosis": [Y], "indices": PLACES},
        {"inputs": lambda b: b["study"]["scan"], "labels": lambda b: b["diagnosis"][0]},
    ),
    "a function of a named tuple": (Backwards(Y, PLACES, X), {"inputs": lambda b: b.inputs}),
    "a function": (
        {"inputs": X, "target": 2 - Y, "indices": PLACES},
        {"labels": lambda b: 2 - b["target"]},
    ),
}
WITH_POSITIONS = ("ScoreWeightedClassifier", "EarlyLearningClassifier")


@pytest.mark.parametrize("tool", TOOLS)
def test_inputs_and_labels_can_be_anywhere(tool: str) -> None:
    right = TOOLS[tool]((X, Y, PLACES), steps=2)
    for kind, (batch, reading) in OWN.items():
        if kind == "names" and tool in WITH_POSITIONS:
            continue
        assert torch.equal(TOOLS[tool](batch, steps=2, **reading), right), kind
    missing = {"inputs": X, "labels": Y, "indices": PLACES}
    for name, message in (("inputs", "scan"), ("labels", "diagnosis")):
        found = rf"'labels', 'indices' and {name}='{message}' \(KeyError: '{message}'\); give"
        with pytest.raises(DataError, match=found):
            TOOLS[tool](missing, **{name: message})


@pytest.mark.parametrize("tool", TOOLS)
def test_a_batch_that_cannot_be_read_is_described(tool: str) -> None:
    for kind, (batch, message, name) in UNREADABLE.items():
        with pytest.raises(DataError, match=f"received {message}.*; give batches") as error:
            TOOLS[tool](batch)
        assert "(inputs, labels)" in str(error.value) and f"with {name}=..." in str(error.value), (
            kind
        )


@pytest.mark.parametrize(
    "given", [(Y,), (True,), (1.5,), (str,)], ids=["tensor", "bool", "float", "class"]
)
@pytest.mark.parametrize("name", ["inputs", "labels", "logits"])
def test_what_says_where_a_part_is_has_to_be_a_place_or_a_function(name: str, given: Any) -> None:
    for tool in TOOLS:
        with pytest.raises(
            ConfigurationError, match=rf"received {name}=.*; give a key or place in"
        ):
            TOOLS[tool]((X, Y, PLACES), **{name: given[0]})


def test_a_place_is_one_in_a_sequence_of_parts() -> None:
    """The second row of a tensor, or of a list of samples, is no part of a batch."""
    for batch in (X, list(zip(X, Y, strict=True))):
        with pytest.raises(DataError, match=r"and labels=1 \(LookupError: it is no sequence"):
            TOOLS["WeightedClassifier"](batch, labels=1)


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ModelOutput": (lambda z: ModelOutput(loss=None, logits=z), {}),
    "attribute": (Output, {}),
    "a key": (lambda z: {"scores": z, "hidden": 2 * z}, {"logits": "scores"}),
    "an attribute": (lambda z: namedtuple("Out", "hidden scores")(2 * z, z), {"logits": "scores"}),
    "a place": (lambda z: (2 * z, z), {"logits": 1}),
    "a function": (lambda z: {"logits": 2 * z}, {"logits": lambda out: out["logits"] / 2}),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_logits_are_found_in_what_a_network_returns(tool: str) -> None:
    right = TOOLS[tool]((X, Y, PLACES), steps=2)
    batch = Encoding(image=X, label=Y, index=PLACES)
    for kind, (form, reading) in FORMS.items():
        found = TOOLS[tool](
            batch, wrap=lambda net, form=form: Returning(net, form), steps=2, **reading
        )
        assert torch.equal(found, right), kind


@pytest.mark.parametrize("tool", TOOLS)
def test_logits_that_are_not_found_are_asked_for(tool: str) -> None:
    for form, where, message in (
        (lambda z: (z, z), None, r"a tuple of 2 parts \(Tensor, Tensor\).*logits=None"),
        (lambda z: {"scores": z}, "logit", "a dict with 'scores'.*logits='logit'"),
        (lambda z: z, 0, r"a tensor of shape \(\d+, 3\).*logits=0"),
    ):
        with pytest.raises(DataError, match=f"returned {message}; give .* say with logits=..."):
            TOOLS[tool](
                (X, Y, PLACES), wrap=lambda net, form=form: Returning(net, form), logits=where
            )


@pytest.mark.parametrize("tool", OF_ANY_INPUTS)
def test_tokens_are_given_by_name(tool: str) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = {
        "input_ids": torch.randint(7, (B, 4), generator=generator),
        "attention_mask": torch.randint(2, (B, 4), generator=generator),
    }
    right = OF_ANY_INPUTS[tool]((tokens, Y, PLACES), base=Words, steps=2)
    batch = Encoding(**tokens, labels=Y, idx=PLACES, sentence=["a"] * B)
    assert torch.equal(OF_ANY_INPUTS[tool](batch, base=Words, steps=2), right)
    # Labels that are not those asked for are not given to the network either.
    batch = Encoding(**tokens, labels=2 - Y, checked=Y, idx=PLACES)
    assert torch.equal(OF_ANY_INPUTS[tool](batch, base=Words, steps=2, labels="checked"), right)


class ByName(nn.Module):
    """A network of two named inputs that returns what a Hugging Face model does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, first: Tensor, second: Tensor) -> Any:
        return ModelOutput(loss=None, logits=self.net(first) * second)


class OfMapping(ByName):
    def forward(self, batch: Any) -> Any:  # type: ignore[override]
        return {"logits": super().forward(batch["first"], batch["second"]).logits}


class OneByName(ByName):
    """The first argument is another one, as where several kinds of inputs may be given."""

    def forward(self, ids: Any = None, first: Any = None, second: Any = 1.0) -> Any:  # type: ignore[override]
        assert ids is None
        return super().forward(first, second)


@pytest.mark.parametrize("net", [ByName, OfMapping])
def test_several_named_inputs_are_given_by_name(net: Any) -> None:
    scale = torch.rand(B, 1, dtype=torch.float64)
    batch = {"first": X, "second": scale, "labels": Y, "idx": PLACES}
    logits = plain()(X) * scale
    losses = F.cross_entropy(logits, Y, reduction="none")
    found = OnlineEnsemble([net()]).score([batch])
    # In double precision, rounding of torch's two ways to a cross-entropy.
    torch.testing.assert_close(found, losses, rtol=1e-12, atol=1e-12)

    problem = prepared(net(), batch)
    assert torch.equal(problem.sample_losses(problem.get_batch()), losses)
    # What the network has no argument for is left out.
    if net is ByName:
        assert torch.equal(problem.sample_losses(batch | {"text": ["a"] * B}), losses)


def prepared(net: nn.Module, batch: Any, **settings: Any) -> WeightedClassifier:
    problem = WeightedClassifier("lower", weights="upper", **parts(net, batch), **settings)
    above = parts(seeded(MetaWeightNet), batch)
    over(WeightLearner("upper", classifier="lower", **above), problem, train_iters=1)
    return problem


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "the one with a usual name": (plain, {"image": X, "path": ["a"] * B, "id": PLACES}),
    "the only one, by its name": (OneByName, {"first": X}),
    "its first argument by name": (
        ByName,
        {"first": X, "second": torch.ones(B, 1), "image": 2 * X},
    ),
    "by names through a pair": (
        lambda: pair(same, ByName()),
        {"first": X, "second": torch.ones(B, 1), "text": ["a"] * B},
    ),
    "one with a usual name and another": (ByName, {"image": X, "second": torch.ones(B, 1)}),
}


@pytest.mark.parametrize("kind", CALLS)
def test_the_input_is_known_by_name(kind: str) -> None:
    make, inputs = CALLS[kind]
    problem = prepared(make(), inputs | {"labels": Y})
    right = F.cross_entropy(plain()(X), Y, reduction="none")
    # In double precision, rounding of torch's two ways to a cross-entropy.
    found = problem.sample_losses(problem.get_batch())
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def test_an_input_that_is_not_known_is_asked_for() -> None:
    batch = {"left": X, "right": X, "labels": Y}
    message = r"a dict with 'left', 'right', as it has no arguments of these names.*inputs=\.\.\."
    problem = prepared(plain(), batch)
    with pytest.raises(DataError, match=message):
        problem.sample_losses(problem.get_batch())
    with pytest.raises(DataError, match=r"mixes.*a dict with 'left', 'right'.*inputs=\.\.\."):
        TOOLS["MixupClassifier"](batch)
    right = TOOLS["MixupClassifier"]((X, Y))
    assert torch.equal(TOOLS["MixupClassifier"](batch, inputs="left"), right)


def test_unlabelled_batches_are_read_alike() -> None:
    right = TOOLS["FixMatch"]((X, Y))
    for pool in (X, (X,), {"scan": X, "id": PLACES}, Unnamed(X, PLACES, PLACES)):
        scan = "scan" if isinstance(pool, dict) else 0
        batch = {"scan": X, "diagnosis": Y} if scan else (X, Y)
        reading = {"inputs": scan} | ({"labels": "diagnosis"} if scan else {})
        assert torch.equal(TOOLS["FixMatch"](batch, pool=pool, **reading), right)
    with pytest.raises(DataError, match=r"from its second loader, received a dict with 'id'"):
        TOOLS["FixMatch"]({"scan": X, "labels": Y}, pool={"id": PLACES}, inputs="scan")


def test_transformers_models_train_as_they_do_by_hand() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, num_labels=C, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    net = seeded(partial(transformers.BertForSequenceClassification, config))
    ids = torch.arange(B * 3).reshape(B, 3) % 9
    batch = transformers.BatchEncoding(
        {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": Y, "idx": PLACES}
    )
    problem = prepared(net, batch)
    outputs = net(input_ids=ids, attention_mask=(ids > 0).long())
    right = F.cross_entropy(outputs.logits, Y, reduction="none")
    assert torch.equal(problem.sample_losses(problem.get_batch()), right)


def test_indices_of_a_mapping_have_a_name() -> None:
    ensemble = OnlineEnsemble([plain()])
    batch = {"x": X, "y": Y, "number": PLACES}
    whole = ensemble.score([(X, Y, PLACES)], index=2)
    named = {"inputs": X, "labels": Y, "indices": PLACES}
    assert torch.equal(ensemble.score([named], index="indices"), whole)
    with pytest.raises(DataError, match=r"'x', 'y', 'number' and index='places' \(KeyError"):
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
    assert torch.equal(data.inputs, X if kind in ("tensors", "one-hot") else X.float())
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
