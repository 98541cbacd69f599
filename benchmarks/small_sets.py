"""Reweighter against cross-entropy on small data sets that come with packages.

::

    python benchmarks/small_sets.py                    # the table of the documentation
    python benchmarks/small_sets.py --tuning --setting class_aware=True --setting epochs=60

Both train the same network for as many steps, on the noisy samples and on five clean ones a class.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from study.files import write_text
from study.versions import versions
from torch import nn

from metaweight import Engine, EngineConfig
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.noise import NoiseKind, inject_label_noise
from metaweight.noise.cross_validation import FoldClassifier
from metaweight.reweighter import Reweighter
from metaweight.reweighter.settings import Settings
from metaweight.reweighter.training import descent
from metaweight.weighting import MetaWeightNet

Arrays = tuple[NDArray[Any], NDArray[np.int64]]
CLEAN_EACH = 5
TEST_SHARE = 0.3
RESULTS = Path(__file__).parent / "results" / "small_sets"


def synthetic(classes: int, features: int, seed: int) -> Arrays:
    """Return 1,000 samples of clusters, two of each class."""
    found: Arrays = datasets.make_classification(
        n_samples=1000,
        n_features=features,
        n_informative=features // 2,
        n_redundant=features // 4,
        n_classes=classes,
        n_clusters_per_class=2,
        class_sep=1.5,
        flip_y=0.0,
        random_state=seed,
    )
    return found


def shipped(load: Callable[..., Arrays]) -> Callable[[], Arrays]:
    """Return a function that loads a set of scikit-learn."""
    return lambda: load(return_X_y=True)


SETS: Mapping[str, Callable[[], Arrays]] = {
    "wine": shipped(datasets.load_wine),
    "breast cancer": shipped(datasets.load_breast_cancer),
    "digits": shipped(datasets.load_digits),
    "iris": shipped(datasets.load_iris),
    "4 classes": lambda: synthetic(4, 16, 0),
    "10 classes": lambda: synthetic(10, 24, 1),
}
TUNING_SETS: Mapping[str, Callable[[], Arrays]] = {
    "3 classes": lambda: synthetic(3, 12, 2),
    "5 classes": lambda: synthetic(5, 20, 3),
    "8 classes": lambda: synthetic(8, 24, 4),
    "few of 3 classes": lambda: tuple(part[:180] for part in synthetic(3, 12, 5)),  # type: ignore[return-value]
}
"""Other sets, for the choice of defaults, which uses other seeds too."""
NOISES: Mapping[str, tuple[NoiseKind, float]] = {
    "none": ("uniform", 0.0),
    "20 % uniform": ("uniform", 0.2),
    "40 % uniform": ("uniform", 0.4),
    "20 % pairwise": ("flip", 0.2),
    "40 % pairwise": ("flip", 0.4),
}


class PlainClassifier(Reweighter):
    """The same network and steps, by cross-entropy on all samples."""

    def _trained(
        self, module: nn.Module, data: LabelledTensors, clean: LabelledTensors, settings: Settings
    ) -> nn.Module:
        steps = settings.steps_of(len(data))
        optimizer, scheduler = descent(module, settings, steps)
        loader = TensorLoader(data, settings.batch_of(len(data)), seed=settings.seed)
        problem = FoldClassifier(
            "classifier",
            module=module,
            optimizer=optimizer,
            scheduler=scheduler,
            train_data_loader=loader,
        )
        Engine([problem], EngineConfig(train_iters=steps, valid_step=steps + 1, device="cpu")).run()
        return MetaWeightNet().double()


def accuracies(
    load: Callable[[], Arrays], noise: str, seed: int, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Return the test accuracy of both, in %."""
    x, y = load()
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=TEST_SHARE, stratify=y, random_state=seed
    )
    order = np.random.default_rng(seed).permutation(len(y))
    clean = np.concatenate([order[y[order] == c][:CLEAN_EACH] for c in np.unique(y)])
    rest = np.setdiff1d(order, clean)
    kind, rate = NOISES[noise]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(y[rest])
    noisy = inject_label_noise(
        labels, rate, num_classes=len(np.unique(y)), kind=kind, generator=generator
    ).noisy.numpy()
    trusted = (x[clean], y[clean])
    found = {}
    for name, kind_of in (("cross-entropy", PlainClassifier), ("Reweighter", Reweighter)):
        own = {**settings, "train_on_clean": True} if kind_of is PlainClassifier else settings
        model = kind_of(random_state=seed, device="cpu", **own)
        model.fit(x[rest], noisy, clean=trusted)
        found[name] = 100 * float(model.score(x_test, y_test))
    return found


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return mean accuracies and the mean gain of each set and noise."""
    lines = ["| data | noise | cross-entropy | Reweighter | gain |", "|:--|:--|--:|--:|--:|"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["set"], record["noise"]), []).append(record)
    for (name, noise), found in groups.items():
        plain, own = (
            statistics.fmean(record["accuracy"][method] for record in found)
            for method in ("cross-entropy", "Reweighter")
        )
        lines.append(f"| {name} | {noise} | {plain:.1f} | {own:.1f} | {own - plain:+.1f} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tuning", action="store_true", help="other sets and seeds")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", action="append", choices=[*NOISES])
    parser.add_argument("--out", type=Path, help="folder of the records")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    settings = {
        name: ast.literal_eval(value)
        for name, _, value in (each.partition("=") for each in arguments.setting)
    }
    sets, first = (TUNING_SETS, 100) if arguments.tuning else (SETS, 0)
    records = [
        {
            "set": name,
            "noise": noise,
            "seed": seed,
            "settings": settings,
            "accuracy": accuracies(load, noise, seed, settings),
        }
        for name, load in sets.items()
        for noise in arguments.noise or NOISES
        for seed in range(first, first + arguments.seeds)
    ]
    print(table(records))
    plain, own = (
        statistics.fmean(record["accuracy"][method] for record in records)
        for method in ("cross-entropy", "Reweighter")
    )
    print(f"\nmean: cross-entropy {plain:.2f}, Reweighter {own:.2f}, gain {own - plain:+.2f}")
    if arguments.out is not None:
        text = json.dumps({"versions": versions("cpu"), "records": records}, indent=1)
        write_text(arguments.out / "small_sets.json", text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
