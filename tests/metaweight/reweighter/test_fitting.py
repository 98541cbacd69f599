"""What a fit changes, and the forms of samples that a network of one's own is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from metaweight import DataError, LossError
from metaweight.reweighter import Reweighter

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
Y[:2] = 0, 1
CLEAN = X[:10], Y[:10]
NAMED = {"x": X, "labels": Y}
NAMED_CLEAN = {"x": X[:10], "labels": Y[:10]}


def test_a_fit_that_fails_changes_nothing() -> None:
    model = Reweighter(epochs=1, random_state=0).fit(X, Y, clean=CLEAN)
    before, known = model.predict_proba(X), dict(vars(model))
    for wrong, said in ((np.zeros(40, int), "labels of one class"), (Y, "diverged")):
        model.learning_rate = 1e200
        with pytest.raises((ValueError, LossError), match=said):
            model.fit(X[:, :2], wrong, clean=(X[:10, :2], Y[:10]))
        model.learning_rate = known["learning_rate"]
        assert model.n_features_in_ == 3 and vars(model) == known
        np.testing.assert_array_equal(model.predict_proba(X), before)


def test_named_arrays_have_no_number_of_features() -> None:
    model = Reweighter(nn.Linear(3, 2), epochs=1).fit(X, Y, clean=CLEAN)
    assert model.n_features_in_ == 3
    model.fit(NAMED, clean=NAMED_CLEAN)
    assert not hasattr(model, "n_features_in_")


def test_numbers_of_named_arrays_that_are_not_finite_are_refused() -> None:
    model = Reweighter(nn.Linear(3, 2), epochs=1).fit(NAMED, clean=NAMED_CLEAN)
    broken = X.copy()
    broken[7, 1] = np.nan
    for act in (
        lambda: model.predict({"x": broken}),
        lambda: model.fit({"x": broken, "labels": Y}, clean=NAMED_CLEAN),
    ):
        with pytest.raises(DataError, match="received 'x' with nan in row 7; give finite numbers"):
            act()


class Items(Dataset[Any]):
    def __init__(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.parts = torch.from_numpy(inputs), torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, position: int) -> Any:
        return self.parts[0][position], int(self.parts[1][position])


def test_outputs_that_are_not_finite_are_no_class() -> None:
    """Of a data set they are seen only when they are there."""
    model = Reweighter(nn.Linear(3, 2), epochs=1).fit(Items(X, Y), clean=Items(*CLEAN))
    broken = X.copy()
    broken[7, 1] = np.inf
    with pytest.raises(DataError, match="outputs are not finite, the first at index 7; look for"):
        model.predict(Items(broken, Y))


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        return self.layer(x)


def larger(samples: list[Any]) -> Any:
    inputs, labels = default_collate(samples)
    return 100 + inputs, labels


def longer(samples: list[Any]) -> Any:
    inputs, labels = default_collate(samples)
    return torch.cat([inputs, inputs], 1), labels


def test_samples_are_joined_as_their_own_loader_does() -> None:
    """Trained on are the 40, and the 10 clean ones in the form of their own collate_fn."""
    network = Noting()
    clean = DataLoader(Items(*CLEAN), batch_size=5, collate_fn=larger)
    model = Reweighter(lambda width, classes: network, epochs=1, batch_size=50, warmup=0.9)
    model.fit(Items(X, Y), clean=clean)
    (batch,) = [seen for seen in network.seen if len(seen) == 50][:1]
    marked = batch[:, 0] > 50
    for found, expected in ((batch[~marked], X), (batch[marked], 100 + X[:10])):
        order = [rows[:, 0].argsort() for rows in (found, torch.from_numpy(expected))]
        assert torch.equal(found[order[0]], torch.from_numpy(expected)[order[1]])


def test_forms_that_do_not_fit_together_are_refused() -> None:
    clean = DataLoader(Items(*CLEAN), batch_size=5, collate_fn=longer)
    with pytest.raises(DataError, match=r"do not fit together .*; give both a collate_fn that"):
        Reweighter(nn.LazyLinear(2), epochs=1, batch_size=50).fit(Items(X, Y), clean=clean)


def test_a_batch_of_one_for_batch_norm_is_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = Reweighter(network, epochs=1, batch_size=13, train_on_clean=False)
    with pytest.raises(ValueError, match=r"a batch of one sample.*; give a batch_size that"):
        model.fit(X, Y, clean=CLEAN)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(5, 4), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embedding(x).flatten(1))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_tables_of_integers_stay_so_for_an_embedding(kind: Any, tmp_path: Any) -> None:
    table = np.random.default_rng(1).integers(0, 5, (40, 4))
    model = Reweighter(Words(), epochs=1).fit(kind(table), Y, clean=(kind(table[:10]), Y[:10]))
    with torch.no_grad():
        expected = model.module_.cpu()(torch.from_numpy(table)).double().softmax(1)
    for given in (table, table.astype(float)):
        np.testing.assert_allclose(model.predict_proba(given), expected, rtol=1e-6)
    with pytest.raises(DataError, match="whole numbers, but received samples of others, such as"):
        model.predict(table + 0.5)
    model.save(tmp_path)
    loaded = Reweighter.load(tmp_path, Words())
    np.testing.assert_allclose(loaded.predict_proba(table), expected, rtol=1e-6)


def test_tables_of_integers_are_floating_numbers_for_other_networks() -> None:
    table = np.random.default_rng(1).integers(0, 5, (40, 3))
    model = Reweighter(nn.Linear(3, 2), epochs=1).fit(table, Y, clean=(table[:10], Y[:10]))
    with torch.no_grad():
        expected = model.module_.cpu()(torch.from_numpy(table).float()).double().softmax(1)
    np.testing.assert_allclose(model.predict_proba(table), expected, rtol=1e-6)


def test_settings_are_saved_as_numbers_and_text(tmp_path: Any) -> None:
    settings = {"random_state": np.int64(3), "device": torch.device("cpu")}
    Reweighter(epochs=1, **settings).fit(X, Y, clean=CLEAN).save(tmp_path)
    torch.default_generator.manual_seed(0)
    before = torch.default_generator.get_state()
    loaded = Reweighter.load(tmp_path)
    assert (loaded.random_state, loaded.device) == (3, "cpu")
    # What a new network draws is not what the program would have drawn.
    assert torch.equal(torch.default_generator.get_state(), before)
