"""What a hook has recorded, in files and data sets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from support.recorded_samples import N, program

from metaweight import (
    DataError,
)
from metaweight.weighting import (
    SampleWeights,
)

COLUMNS = ("count", "weight", "mean_weight", "loss", "mean_loss", "prediction", "mean_prediction")


def expected_rows(hook: SampleWeights) -> dict[str, list[Any]]:
    values = (hook.counts, hook.last, hook.mean, hook.losses, hook.mean_losses)
    values += (hook.predictions.argmax(1), hook.mean_predictions.argmax(1))
    found = {n: v.tolist() for n, v in zip(COLUMNS, values, strict=True)}
    for name in COLUMNS[1:]:
        found[name][N - 3 :] = [None] * 3
    return found


def test_a_table_has_a_row_for_each_sample(tmp_path: Path) -> None:
    hook = SampleWeights("classifier", N)
    program(hook).run()
    path = hook.write_csv(tmp_path / "weights.csv")
    header, *rows = csv.reader(path.read_text().splitlines())
    assert header == ["index", *COLUMNS]
    assert [row[0] for row in rows] == [str(i) for i in range(N)]
    for name, *cells in zip(header[1:], *(row[1:] for row in rows), strict=True):
        assert [float(c) if c else None for c in cells] == expected_rows(hook)[name]
    assert [p.name for p in tmp_path.iterdir()] == ["weights.csv"]


def test_a_parquet_file_has_nulls_for_what_was_not_seen(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    hook = SampleWeights("classifier", N)
    program(hook).run()
    table = parquet.read_table(hook.write_parquet(tmp_path / "weights.parquet"))
    assert table.to_pydict() == {"index": list(range(N)), **expected_rows(hook)}


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow .* install it with: pip install pyarrow"):
        SampleWeights("classifier", 2).write_parquet(tmp_path / "weights.parquet")


class Table:
    """What is used of a ``datasets.Dataset``."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def add_column(self, name: str, column: list[Any]) -> Table:
        return Table({**self.columns, name: column})


@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "datasets"])
def test_a_dataset_gets_columns(real: bool) -> None:
    made = pytest.importorskip("datasets").Dataset.from_dict if real else Table
    hook = SampleWeights("classifier", N)
    program(hook).run()
    texts = made({"text": [str(i) for i in range(N)]})
    found = hook.add_to(texts)
    assert found.column_names == ["text", *("sample_" + name for name in COLUMNS)]
    rows = found.to_dict() if real else found.columns
    assert {n: list(rows["sample_" + n]) for n in COLUMNS} == expected_rows(hook)
    assert texts.column_names == ["text"]
    with pytest.raises(DataError, match=r"has columns sample_count, .* already; give another"):
        hook.add_to(found)
    assert "w_mean_loss" in hook.add_to(found, prefix="w_").column_names
    with pytest.raises(DataError, match=r"values of 14 samples .* a dataset of 2 rows; give the"):
        hook.add_to(made({"text": ["a", "b"]}))
    with pytest.raises(DataError, match=r"add_to received list, .* give a datasets\.Dataset"):
        hook.add_to([1, 2])
