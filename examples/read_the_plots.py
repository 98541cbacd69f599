"""Pictures of a good run of learned weights and three bad ones, and the numbers behind them.

A third of the labels of the digits are redrawn; five of each class are checked. ::

    python examples/read_the_plots.py --folder pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from metaweight.reweighter import Reweighter

Numbers = NDArray[Any]
# What is wrong with a run, by its name; "reversed" has wrong "checked" labels besides.
RUNS: dict[str, dict[str, Any]] = {
    "good": {},
    "nothing_learned": {"meta_learning_rate": 1e-6},
    "collapsed": {"warmup": 0.0, "meta_learning_rate": 0.03},
    "reversed": {"train_on_clean": False},
}


def digits() -> tuple[Numbers, Numbers, tuple[Numbers, Numbers]]:
    """Return images and labels, a third of them redrawn, and the checked ones."""
    rng = np.random.default_rng(0)
    x, truth = load_digits(return_X_y=True)
    order = rng.permutation(len(x))[:900]
    x, truth = x[order], truth[order]
    checked = np.concatenate([np.flatnonzero(truth == digit)[:5] for digit in range(10)])
    clean = x[checked], truth[checked]
    x, truth = np.delete(x, checked, 0), np.delete(truth, checked)
    redrawn = rng.random(len(truth)) < 1 / 3
    return x, np.where(redrawn, rng.integers(0, 10, len(truth)), truth), clean


def summary(model: Reweighter, x: Numbers, y: Numbers) -> dict[str, float]:
    """Return what the pictures show, in numbers."""
    suspicious, weights = model.predict(x) != y, model.sample_weights_
    numbers = {name: model.history_[name][-1] for name in ("effective_share", "clean_loss")}
    return {
        "weight of suspicious": float(weights[suspicious].mean()),
        "of others": float(weights[~suspicious].mean()),
        **numbers,
    }


def main(folder: Path) -> dict[str, dict[str, float]]:
    """Make the runs, write a picture of each, and return their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y, (x_clean, y_clean) = digits()
    found = {}
    for name, settings in RUNS.items():
        right = (y_clean + 1) % 10 if name == "reversed" else y_clean
        model = Reweighter(random_state=0, **settings).fit(x, y, clean=(x_clean, right))
        model.plot().savefig(folder / f"{name}.png")
        found[name] = summary(model, x, y)
        print(f"{name:16}", *(f"{what} {value:.2f} " for what, value in found[name].items()))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("pictures"), help="of the pictures")
    main(**vars(parser.parse_args()))
