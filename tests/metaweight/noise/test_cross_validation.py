"""Folds, out-of-fold predictions, and the labels they find to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batch_tools import Returning
from torch import Tensor, nn

from metaweight import ConfigurationError, DataError
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.noise import CrossValidatedConfidence, inject_label_noise, stratified_folds
from metaweight.noise.cross_validation import FoldClassifier

pytest.importorskip("cleanlab")


def clusters(size: int = 240, noise: float = 0.3) -> LabelledTensors:
    """Three well separated clusters in the plane, some labels moved."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(size) % 3
    centres = torch.tensor([[4.0, 0.0], [-2.0, 3.5], [-2.0, -3.5]])
    inputs = centres[true] + torch.randn(size, 2, generator=generator)
    noisy = inject_label_noise(
        true, noise, num_classes=3, kind="uniform_exclusive", generator=generator
    )
    return LabelledTensors(inputs, noisy.noisy, true, torch.arange(size) + 1000, 3)


def make_module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 3))


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def search(**changes: Any) -> CrossValidatedConfidence:
    settings = {"steps": 60, "batch_size": 40, "device": "cpu", **changes}
    return CrossValidatedConfidence(make_module, make_optimizer, **settings)


def test_it_finds_the_wrong_labels_of_separable_data(tmp_path: Path) -> None:
    data = clusters()
    found = search().run(data)
    wrong = data.wrong_labels
    flagged = found.issues.mask()
    assert wrong.sum() == 72
    # The clusters touch in a few samples only.
    assert (flagged & wrong).sum() >= 66 and (flagged & ~wrong).sum() <= 6
    assert found.pruned().wrong_labels.sum() == (wrong & ~flagged).sum()
    assert len(found.pruned()) == 240 - len(found.issues)
    assert found.relabelled().wrong_labels.sum() <= 8
    assert torch.equal(found.relabelled().labels[~flagged], data.labels[~flagged])
    assert found.issues.keys == tuple(data.indices[found.issues.indices].tolist())
    rows = found.write_csv(tmp_path / "issues.csv").read_text().splitlines()
    assert len(rows) == 1 + len(found.issues)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(240).double())


def test_the_same_seed_gives_the_same_result_and_leaves_global_streams_alone() -> None:
    data = clusters()
    before = torch.random.get_rng_state()
    first = search(seed=3).run(data)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, other = search(seed=3).run(data), search(seed=4).run(data)
    assert torch.equal(first.probabilities, again.probabilities)
    assert torch.equal(first.issues.indices, again.issues.indices)
    assert torch.equal(first.folds, again.folds) and not torch.equal(first.folds, other.folds)
    assert not torch.equal(first.probabilities, other.probabilities)


class Memory(nn.Module):
    """Knows by heart what it has trained on, and answers class 0 to everything else."""

    def __init__(self, seen: LabelledTensors) -> None:
        super().__init__()
        self.seen = seen
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        same = (inputs.unsqueeze(1) == self.seen.inputs).all(2)
        known = same.double() @ nn.functional.one_hot(self.seen.labels, 3).double()
        known[:, 0] += ~same.any(1)
        return 10 * self.scale * known


def test_logits_are_found_in_what_a_network_returns() -> None:
    def make() -> nn.Module:
        return Returning(make_module(), lambda z: {"hidden": 2 * z, "scores": z})

    data, steps = clusters(60), {"steps": 2, "batch_size": 40, "device": "cpu"}
    right = search(steps=2).run(data).probabilities
    found = CrossValidatedConfidence(make, make_optimizer, logits="scores", **steps).run(data)
    assert torch.equal(found.probabilities, right)
    with pytest.raises(DataError, match=r"returned a dict with 'hidden', 'scores'.*logits=None"):
        CrossValidatedConfidence(make, make_optimizer, **steps).run(data)
    with pytest.raises(ConfigurationError, match=r"Confidence received logits=1\.5"):
        search(logits=1.5)


def test_no_prediction_comes_from_a_network_that_saw_the_sample() -> None:
    data = clusters(60)

    def make_problem(name: str, part: LabelledTensors, seed: int) -> FoldClassifier:
        module = Memory(part)
        return FoldClassifier(
            name,
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.0),
            train_data_loader=TensorLoader(part, 10, seed=seed),
        )

    found = CrossValidatedConfidence(make_problem=make_problem, folds=4, steps=1).run(data)
    assert (found.probabilities.argmax(1) == 0).all()
    assert torch.bincount(found.folds).tolist() == [15, 15, 15, 15]


def test_a_problem_of_another_shape_is_refused() -> None:
    def make_problem(name: str, part: LabelledTensors, seed: int) -> FoldClassifier:
        module = nn.Linear(2, 4)
        return FoldClassifier(
            name,
            module=module,
            optimizer=make_optimizer(module),
            train_data_loader=TensorLoader(part, 10, seed=seed),
        )

    wrong = CrossValidatedConfidence(make_problem=make_problem, steps=1)
    with pytest.raises(DataError, match=r"'fold_0' predicted shape \(20, 4\).*\(20, 3\)"):
        wrong.run(clusters(60))


@settings(deadline=None, max_examples=50)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    folds=st.integers(2, 5),
    seed=st.integers(0, 100),
)
def test_folds_are_even_in_all_and_in_each_class(labels: list[int], folds: int, seed: int) -> None:
    if len(labels) < folds:
        return
    given_labels = torch.tensor(labels)
    found = stratified_folds(given_labels, folds, seed=seed)
    assert torch.equal(found, stratified_folds(given_labels, folds, seed=seed))
    for chosen in (found, *(found[given_labels == c] for c in set(labels))):
        sizes = torch.bincount(chosen, minlength=folds)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, r"folds=1.*at least 2"),
        ({"steps": 0}, r"steps=0.*at least 1"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"make_problem": print}, "make_module, make_optimizer, make_problem; give"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        search(**changes)


def test_half_a_maker_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="given make_module; give make_module and"):
        CrossValidatedConfidence(make_module)
    with pytest.raises(ConfigurationError, match="no maker"):
        CrossValidatedConfidence()


def test_fewer_samples_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match="2 samples were given for 3 folds"):
        stratified_folds(torch.tensor([0, 1]), 3)
    with pytest.raises(ConfigurationError, match="1 folds were asked for"):
        stratified_folds(torch.tensor([0, 1]), 1)
