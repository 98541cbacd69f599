"""Finding wrong labels: cleanlab's answers, behind checks and with a table."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metaweight import ConfigurationError, DataError
from metaweight.noise import LabelIssues, confident_learning

filters = pytest.importorskip("cleanlab.filter")

P = [
    [0.9, 0.1, 0.0],
    [0.8, 0.1, 0.1],
    [0.2, 0.7, 0.1],
    [0.1, 0.8, 0.1],
    [0.05, 0.9, 0.05],
    [0.1, 0.2, 0.7],
    [0.1, 0.1, 0.8],
    [0.85, 0.1, 0.05],
]
Y = [0, 0, 0, 1, 1, 2, 2, 2]


def find(**changes: Any) -> LabelIssues:
    settings = {"labels": Y, "probabilities": np.array(P), **changes}
    return confident_learning(settings.pop("labels"), **settings)


@pytest.mark.parametrize(
    ("rule", "issues"),
    [
        ("prune_by_noise_rate", [7]),
        ("prune_by_class", [7]),
        ("both", [7]),
        ("confident_learning", [7]),
        ("predicted_neq_given", [7, 2]),
    ],
)
def test_the_worked_case(rule: Any, issues: list[int]) -> None:
    found = find(filter_by=rule)
    assert found.indices.tolist() == issues
    assert found.joint.tolist() == [[3, 0, 0], [0, 2, 0], [1, 0, 2]]
    assert found.given.tolist() == [Y[i] for i in issues]
    assert found.suggested.tolist() == [int(np.argmax(P[i])) for i in issues]
    assert found.confidence.tolist() == [P[i][Y[i]] for i in issues]
    assert found.mask().nonzero().squeeze(1).tolist() == sorted(issues)
    assert len(found) == len(issues)


RULES = ["prune_by_noise_rate", "prune_by_class", "both", "confident_learning"]


def test_ninety_six_random_problems_have_cleanlabs_own_answer() -> None:
    total = 0
    for seed in range(96):
        generator = np.random.default_rng(seed)
        classes, size = int(generator.integers(2, 7)), int(generator.integers(30, 120))
        true = generator.integers(0, classes, size)
        given = np.where(generator.random(size) < 0.3, generator.integers(0, classes, size), true)
        # Two samples of each class, so that there is nothing to warn of.
        given[: 2 * classes] = true[: 2 * classes] = np.tile(np.arange(classes), 2)
        logits = generator.normal(size=(size, classes)) + 2.0 * np.eye(classes)[true]
        p = torch.from_numpy(logits).softmax(1).numpy()
        rule, frac = RULES[seed % 4], (0.5 if seed % 4 < 3 and seed % 3 == 0 else 1.0)
        expected = filters.find_label_issues(
            given,
            p,
            return_indices_ranked_by="self_confidence",
            filter_by=rule,
            frac_noise=frac,
            n_jobs=1,
        )
        for predictions in ({"probabilities": p}, {"logits": torch.from_numpy(logits)}):
            found = confident_learning(
                torch.from_numpy(given), filter_by=rule, frac_noise=frac, **predictions
            )
            assert found.indices.tolist() == expected.tolist(), seed
        assert (found.confidence.diff() >= 0).all()
        assert (found.suggested != found.given).all()
        total += len(expected)
    assert total > 500, "the problems are too easy to compare anything"


def test_unlabelled_samples_are_left_out_and_positions_are_those_given() -> None:
    labels = [-1, *Y, -1]
    rows = [[1 / 3, 1 / 3, 1 / 3], *P, [0.2, 0.2, 0.6]]
    names = [f"item {i}" for i in range(10)]
    found = confident_learning(labels, probabilities=torch.tensor(rows).double(), keys=names)
    assert found.indices.tolist() == [8] and found.keys == ("item 8",)
    assert found.size == 10 and found.mask().sum() == 1


def test_no_issue_is_an_empty_answer(tmp_path: Path) -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
    found = confident_learning([0, 0, 1, 1], probabilities=p)
    assert len(found) == 0 and found.keys == () and not found.mask().any()
    path = found.write_csv(tmp_path / "none.csv")
    assert path.read_text().splitlines() == ["item,given_label,suggested_label,confidence"]


def test_the_table_holds_every_issue_in_order(tmp_path: Path) -> None:
    keys = [f'digit, "{i}"' for i in range(8)]
    found = find(filter_by="predicted_neq_given", keys=keys)
    path = tmp_path / "issues.csv"
    path.write_text("old")
    assert found.write_csv(str(path)) == path
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == [keys[7], keys[2]]
    assert [row["given_label"] for row in rows] == ["2", "0"]
    assert [row["suggested_label"] for row in rows] == ["0", "1"]
    assert [float(row["confidence"]) for row in rows] == found.confidence.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["issues.csv"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    path = tmp_path / "issues.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="no text"):
        find(keys=[Unprintable() for _ in Y]).write_csv(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["issues.csv"]


def test_nothing_given_is_changed() -> None:
    labels, rows = torch.tensor([-1, *Y]), torch.tensor([[0.2, 0.3, 0.5], *P])
    before = labels.clone(), rows.clone()
    confident_learning(labels, probabilities=rows)
    assert torch.equal(labels, before[0]) and torch.equal(rows, before[1])


def changed(row: int, values: list[float]) -> np.ndarray:
    p = np.array(P)
    p[row] = values
    return p


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": [0, 0, 0, 1, 1, 2, 2, 3]}, DataError, r"span 0 to 3.*3 classes.*\[0, 3\)"),
        ({"labels": [0, 0, 0, 1, 1, 2, 2, -2]}, DataError, "span -2 to 2"),
        ({"labels": [0.0] * 8}, DataError, "type torch.float.*other integer classes"),
        ({"labels": [[0]] * 8}, DataError, r"shape \(8, 1\)"),
        ({"labels": [-1] * 8}, DataError, "8 samples were given, none of them labelled"),
        ({"labels": [], "probabilities": np.zeros((0, 3))}, DataError, "0 samples were given"),
        ({"labels": [1] * 8}, DataError, "All labels name class 1"),
        ({"labels": Y[:7]}, DataError, "8 rows of probabilities.*7 labels"),
        ({"probabilities": None}, DataError, "Neither probabilities nor logits were given"),
        ({"logits": np.array(P)}, DataError, "Probabilities and logits were given; give one"),
        ({"probabilities": np.ones((8, 1))}, DataError, "C of at least 2"),
        ({"probabilities": np.ones(8)}, DataError, r"shape \(8,\)"),
        ({"probabilities": changed(3, [0.5, 0.6, -0.1])}, DataError, "Row 3.*entry -0.1"),
        ({"probabilities": changed(4, [0.5, 0.6, 0.1])}, DataError, r"Row 4.*sum 1.2.*logits="),
        ({"probabilities": changed(5, [0.5, np.nan, 0.5])}, DataError, "Row 5 .* not finite"),
        ({"probabilities": None, "logits": changed(2, [0, np.inf, 0])}, DataError, "Row 2 of log"),
        ({"keys": ["a"]}, DataError, "1 keys were given for 8 labels"),
        ({"filter_by": "all"}, ConfigurationError, "filter_by='all'.*prune_by_class"),
        ({"frac_noise": 0}, ConfigurationError, r"frac_noise=0 was given; use a share in \(0, 1\]"),
        ({"frac_noise": 1.5}, ConfigurationError, "frac_noise=1.5"),
        (
            {"frac_noise": 0.5, "filter_by": "confident_learning"},
            ConfigurationError,
            "does not use it",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find(**changes)


def test_a_class_of_one_sample_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="Classes 1, 3 have fewer than 2 labelled samples"):
        confident_learning([0, 0, 1, 2, 2], logits=np.eye(4)[[0, 0, 1, 2, 2]])


def test_rows_may_miss_a_sum_of_one_by_rounding() -> None:
    assert find(probabilities=torch.tensor(P)).indices.tolist() == [7]
    assert find(probabilities=changed(0, [1.0005, 0, 0])).indices.tolist() == [7]


def test_a_missing_cleanlab_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ImportError, match=r"pip install 'metaweight\[noise\]'"):
        find()


def test_a_column_of_keys_is_read_in_its_order() -> None:
    """A frame that was sorted or filtered has rows whose labels are other numbers."""
    names = [f"item {i}" for i in range(8)]
    column = pd.Series(names, index=range(7, -1, -1))
    found = find(filter_by="predicted_neq_given", keys=column)
    assert found.keys == tuple(names[i] for i in found.indices.tolist()) != ()
