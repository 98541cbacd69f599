"""Frames as people read them from files: text, dates, gaps and numbers of several kinds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from metaweight.reweighter import Reweighter

pd = pytest.importorskip("pandas")
Y = np.array(["no", "yes"] * 15)
NUMBERS = np.arange(30.0)
CITIES = ["Bern", "Lima", "Oslo"] * 10
DAYS = pd.Series(pd.date_range("2024-01-01", periods=30))


def model() -> Reweighter:
    return Reweighter(epochs=1, random_state=0, device="cpu")


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"size": NUMBERS, "city": CITIES}, r"columns 'city' \(such as 'Bern'\) are not numbers"),
        (
            {"city": pd.Categorical(CITIES)},
            r"columns 'city' \(such as 'Bern'\).*OneHotEncoder.*\['city'\]",
        ),
        ({"size": NUMBERS, "day": DAYS}, r"columns 'day' \(dates\) are not numbers"),
        ({"day": DAYS}, r"columns 'day' \(dates\) are not numbers"),
        (
            {"day": DAYS, "city": [None, *CITIES[1:]], "mixed": [1, "?", *CITIES[2:]]},
            r"columns 'day' \(dates\), 'city' \(such as 'Lima'\), 'mixed' \(such as '\?'\) are.*"
            r"\['city', 'mixed'\]",
        ),
    ],
    ids=["text", "categories", "dates", "dates alone", "several"],
)
def test_columns_that_are_not_numbers_are_named(columns: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"Reweighter received a frame whose {named}"):
        model().fit(pd.DataFrame({**columns, "more": NUMBERS} if len(columns) > 2 else columns), Y)


def test_columns_to_predict_are_named_too() -> None:
    frame = pd.DataFrame({"size": NUMBERS, "city": NUMBERS})
    fitted = model().fit(frame, Y, clean=(frame, Y))
    other = frame.assign(city=CITIES)
    for refused in (lambda: fitted.predict(other), lambda: model().fit(frame, Y, clean=(other, Y))):
        with pytest.raises(ValueError, match=r"columns 'city' \(such as 'Bern'\) are not numbers"):
            refused()


def test_gaps_are_scikit_learns_to_refuse() -> None:
    frame = pd.DataFrame({"size": NUMBERS, "age": [np.nan, *NUMBERS[1:]]})
    with pytest.raises(ValueError, match=r"Input X contains NaN.\nReweighter does not accept"):
        model().fit(frame, Y)


def test_kinds_of_numbers_are_taken() -> None:
    frame = pd.DataFrame(
        {
            "whole": pd.array(range(30), dtype="Int64"),
            "true": [True, False] * 15,
            "graded": pd.Categorical([1, 2, 3] * 10),
            "object": pd.Series(NUMBERS, dtype=object),
        }
    )
    found = model().fit(frame, Y, clean=(frame[:8], Y[:8]))
    np.testing.assert_array_equal(
        found.predict_proba(frame), found.predict_proba(frame.astype(float))
    )


def test_the_remedy_works_and_issues_are_of_the_rows_of_the_file() -> None:
    frame = pd.DataFrame({"size": NUMBERS, "city": CITIES})
    encoder = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [("text", encoder, ["city"])], remainder="passthrough", sparse_threshold=0
    )
    pipeline = make_pipeline(columns, model()).fit(frame, Y)
    with warnings.catch_warnings():
        # Of a city that the encoder does not know.
        warnings.simplefilter("ignore")
        assert len(pipeline.predict(frame.replace("Oslo", "Rome"))) == 30
    apart = columns.fit(frame)
    clean = (apart.transform(frame[:8]), Y[:8])
    issues = model().fit(apart.transform(frame), Y, clean=clean).label_issues_
    assert issues["given"].tolist() == Y[issues["index"]].tolist()
