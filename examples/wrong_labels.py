"""From a CSV file with wrong labels to a CSV file of the rows to look at, the worst first.

The file holds measurements of real tumours; a fifth of the diagnoses is redrawn at random, and five
rows of each class were checked. With a file of your own, leave out ``write_example``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

from metaweight.reweighter import Reweighter


def write_example(path: Path) -> pd.Series:
    """Write the file and return the right labels."""
    rng = np.random.default_rng(0)
    bunch = load_breast_cancer(as_frame=True)
    table, truth = bunch.data.copy(), pd.Series(bunch.target_names[bunch.target])
    redrawn = rng.random(len(table)) < 0.2
    table["diagnosis"] = np.where(redrawn, rng.permutation(truth), truth)
    table["checked"] = truth.groupby(truth).cumcount() < 5
    table.loc[table["checked"], "diagnosis"] = truth[table["checked"]]
    table.to_csv(path, index=False)
    return truth


truth = write_example(Path("patients.csv"))

table = pd.read_csv("patients.csv")
rest, checked = table[~table["checked"]], table[table["checked"]]
features = table.columns.drop(["diagnosis", "checked"])

model = Reweighter(random_state=0)
model.fit(rest[features], rest["diagnosis"], clean=(checked[features], checked["diagnosis"]))

issues = model.label_issues_
issues.insert(0, "line", rest.index[issues["index"]] + 2)  # the first line is the header
issues.to_csv("suspicious.csv", index=False)

wrong = rest["diagnosis"] != truth[rest.index]
found = int(wrong.iloc[issues["index"]].sum())
print(f"{len(issues)} labels listed, {found} of the {int(wrong.sum())} wrong ones among them")
