"""Samples that are not a table: named arrays, dictionaries and data sets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

from metaweight import CheckpointError
from metaweight.reweighter import Reweighter

CLASSES = np.array(["calm", "loud"])


def sentences(samples: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids whose class is the more frequent of two tokens, their mask, and labels."""
    draws = np.random.default_rng(0)
    classes = np.arange(samples) % 2
    ids = np.where(draws.random((samples, 6)) < 0.95, classes[:, None], 1 - classes[:, None]) + 1
    mask = np.arange(6) < draws.integers(3, 7, (samples, 1))
    return np.where(mask, ids, 0), mask.astype(np.int64), CLASSES[classes]


IDS, MASK, LABELS = sentences()
TOKENS = {"input_ids": IDS, "attention_mask": MASK}
ROWS = [
    {"input_ids": i, "attention_mask": m, "text": "…", "labels": y}
    for i, m, y in zip(IDS.tolist(), MASK.tolist(), LABELS.tolist(), strict=True)
]


class Bag(nn.Module):
    """The mean embedding of the tokens that count, as Hugging Face's models are called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Any = None) -> Any:
        assert labels is None
        kept = attention_mask[..., None]
        mean = (self.embedding(input_ids) * kept).sum(1) / kept.sum(1)
        return SimpleNamespace(logits=self.last(mean))


class Rows(Dataset[Any]):
    """A data set of samples."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        return self.samples[position]


def bag() -> Reweighter:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return Reweighter(Bag(), epochs=3, learning_rate=0.3, random_state=0, device="cpu")


def test_named_arrays_rows_and_labels_apart_are_the_same() -> None:
    clean = ({name: part[:10] for name, part in TOKENS.items()}, LABELS[:10])
    expected = bag().fit(TOKENS, LABELS, clean=clean)
    assert expected.score(TOKENS, LABELS) > 0.9
    assert (expected.predict(TOKENS) == expected.predict(ROWS)).all()
    assert list(expected.classes_) == ["calm", "loud"]
    assert expected.score(ROWS) == expected.score(TOKENS, LABELS)
    tensors = {name: torch.from_numpy(part) for name, part in TOKENS.items()}
    for x, trusted in ((ROWS, clean), ({**tensors, "y": LABELS, "text": LABELS}, ROWS[:10])):
        model = bag().fit(x, clean=trusted)
        np.testing.assert_array_equal(model.sample_weights_, expected.sample_weights_)
        np.testing.assert_array_equal(model.predict_proba(x), expected.predict_proba(TOKENS))


def test_a_named_array_is_the_same_as_an_array() -> None:
    """To the last bit: the same network sees the same batches."""
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    tensors = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    for clean, others in (((x[:9], y[:9]), {"X": x[:9], "y": y[:9]}), (None, None)):
        model = Reweighter(nn.Linear(2, 2), epochs=3, random_state=0, device="cpu")
        expected = model.fit(x, y, clean=clean).predict_proba(x)
        named = model.fit({"X": x, "y": y}, clean=others)
        np.testing.assert_array_equal(named.predict_proba({"X": x}), expected)
        pair = None if clean is None else TensorDataset(*(part[:9] for part in tensors.tensors))
        for given in (tensors, DataLoader(tensors, batch_size=8)):
            model.fit(given, clean=pair)
            np.testing.assert_array_equal(model.predict_proba(given), expected)
            np.testing.assert_array_equal(model.predict_proba(x), expected)


@pytest.mark.parametrize("found", [False, True], ids=["given", "found"])
def test_a_data_set_is_read_sample_by_sample(found: bool) -> None:
    """Alone and by a loader, whose own order is not used; clean samples beside it, or found."""
    pairs = [((i, m), y) for i, m, y in zip(IDS, MASK, LABELS.tolist(), strict=True)]

    class Pair(Bag):
        def forward(self, both: Any) -> Any:
            return super().forward(*both)

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = Pair()
    clean = None if found else Rows(pairs[:10])
    models = []
    for x in (Rows(pairs), DataLoader(Rows(pairs), batch_size=8, shuffle=True)):
        model = Reweighter(net, epochs=3, learning_rate=0.3, random_state=0, device="cpu")
        models.append(model.fit(x, clean=clean))
        assert model.score(x) > 0.9
    assert models[0].sample_weights_.mean() == pytest.approx(1)
    for name in ("sample_weights_", "clean_indices_"):
        first, second = (getattr(model, name) for model in models)
        np.testing.assert_array_equal(first, second)
    issues = models[0].label_issues_
    assert (issues["given"] == LABELS[issues["index"]]).all()


def test_a_loader_that_pads() -> None:
    ragged = [
        {"input_ids": row["input_ids"][: sum(row["attention_mask"])], "labels": row["labels"]}
        for row in ROWS
    ]

    def pad(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = [row["labels"] for row in rows]
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": labels}

    def loader(rows: list[Any]) -> DataLoader[Any]:
        return DataLoader(Rows(rows), batch_size=8, collate_fn=pad)

    model = bag().fit(loader(ragged), clean=loader(ragged[:10]))
    # The padding differs with the batch; a bag does not see it.
    tokens = bag().fit(DataLoader(Rows(ROWS), batch_size=8), clean=Rows(ROWS[:10]))
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(model.predict_proba(TOKENS), tokens.predict_proba(TOKENS), **close)
    np.testing.assert_allclose(model.sample_weights_, tokens.sample_weights_, **close)
    with pytest.raises(ValueError, match=r"of type dict could not be joined \(.*a collate_fn"):
        bag().fit(Rows(ragged))


def test_hugging_face_data_sets() -> None:
    made = pytest.importorskip("datasets").Dataset.from_list(ROWS)
    model = bag().fit(made, clean=made.select(range(10)))
    expected = bag().fit(Rows(ROWS), clean=Rows(ROWS[:10]))
    np.testing.assert_array_equal(model.predict_proba(made), expected.predict_proba(ROWS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_model() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=3, intermediate_size=16, **sizes)
    net = transformers.BertForSequenceClassification(config)
    model = Reweighter(net, epochs=10, learning_rate=0.1, random_state=0, device="cpu")
    assert model.fit(ROWS, clean=ROWS[:10]).score(ROWS) > 0.9


def test_where_things_are_is_said(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    parts = {"ids": IDS, "other": MASK, "weight": np.ones(60), "what": LABELS}
    net = nn.ModuleDict({"embedding": nn.Embedding(3, 4), "last": nn.Linear(4, 2)})

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return {"hidden": x, "scores": self.net["last"](self.net["embedding"](x).mean(1))}

    settings = {"labels": "what", "logits": lambda found: found["scores"]}
    model = Reweighter(Deep(), epochs=2, random_state=0, inputs="ids", **settings).fit(parts)
    model.save(tmp_path)
    expected = model.predict_proba({"ids": IDS})
    again = Reweighter.load(tmp_path, Deep(), logits=settings["logits"])
    np.testing.assert_array_equal(again.predict_proba({"ids": IDS}), expected)
    with pytest.raises(CheckpointError, match=r"with a function logits=…, which is not saved"):
        Reweighter.load(tmp_path, Deep())


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(ROWS)


CUT = {**TOKENS, "attention_mask": MASK[:5]}
SAMPLED: DataLoader[Any] = DataLoader(Rows(ROWS), sampler=SubsetRandomSampler([0, 1]))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"X": ROWS, "y": LABELS}, "received labels in X and as y; leave out y"),
        ({"X": Rows(ROWS), "y": LABELS}, "received labels in X and as y; leave out y"),
        ({"X": TOKENS}, "a dict with 'input_ids', 'attention_mask', without labels; give"),
        ({"X": Rows([IDS[0]])}, "a tensor of shape .*, without labels; give batches"),
        ({"X": {**CUT, "labels": LABELS}}, "60 of 'input_ids', 5 of 'attention_mask', 60 of 'lab"),
        ({"X": {"labels": LABELS, "text": LABELS}}, "received 60 of 'labels'; give arrays of as"),
        ({"X": TOKENS, "y": LABELS[:5]}, r"inconsistent numbers of samples: \[60, 5\]"),
        ({"X": {**TOKENS, "label": [[1, 2, 3]] * 60}}, "y should be a 1d array"),
        ({"X": {**TOKENS, "label": [[1, 2]] * 60}}, r"\[1, 2\] first; give rows of 2 zeros and"),
        (
            {"X": ROWS, "clean": {**ROWS[0], "labels": LABELS[:1]}},
            "received 6 of 'input_ids', 6 of",
        ),
        ({"X": ROWS, "clean": ROWS[:1]}, "no clean sample is of the class 'loud'"),
        ({"X": ROWS, "clean": (IDS[:2], LABELS[:2])}, "was fitted on the parts .* one array"),
        (
            {"X": ROWS, "clean": Rows(ROWS[:2])},
            "one is in memory and the other a data set; give both",
        ),
        ({"X": Endless()}, "received Endless, which has no samples by position"),
        ({"X": Rows([])}, "received Rows, which has no samples by position"),
        ({"X": SAMPLED}, "with a SubsetRandomSampler or batches of its own, but draws"),
    ],
)
def test_bad_input_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bag().fit(**given)


def test_parts_that_fit_did_not_have_are_left_out() -> None:
    """Also for a network that takes everything."""

    class Open(Bag):
        def forward(self, **parts: Any) -> Any:
            assert set(parts) == {"input_ids", "attention_mask"}
            return super().forward(**parts)

    model = Reweighter(Open(), epochs=1, random_state=0, device="cpu")
    model.fit(TOKENS, LABELS, clean={**TOKENS, "length": MASK.sum(1), "labels": LABELS})
    expected = model.predict_proba(TOKENS)
    longer = {**TOKENS, "length": MASK.sum(1)}
    rows = [{**row, "length": 3} for row in ROWS]
    for other in (longer, rows, Rows(rows)):
        np.testing.assert_array_equal(model.predict_proba(other), expected)


def test_other_samples_than_those_of_fit_are_refused() -> None:
    model = bag().fit(ROWS)
    for other in ({"input_ids": IDS}, IDS):
        with pytest.raises(ValueError, match=r"was fitted on the parts .*, but received"):
            model.predict(other)
    with pytest.raises(ValueError, match=r"received list and has no network for it; give module"):
        Reweighter().fit(ROWS)
    table = Reweighter(epochs=1, random_state=0).fit(IDS, LABELS)
    with pytest.raises(ValueError, match="was fitted on a table, but received list; give an arr"):
        table.predict(ROWS)
