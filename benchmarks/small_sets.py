"""Reweighter against cross-entropy on small data sets that come with packages.

::

    python benchmarks/small_sets.py --jobs 2           # the records of the documentation's table
    python benchmarks/small_sets.py --tuning --setting class_aware=True --setting epochs=60

All train the same network for as many passes over the noisy samples: with five clean ones a class,
which cross-entropy trains on too; and without them, where confident learning prunes first.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from study.files import write_text
from study.versions import versions
from torch import nn

from metaweight import Engine, EngineConfig
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.noise import NoiseKind, confident_learning, inject_label_noise
from metaweight.noise.cross_validation import FoldClassifier
from metaweight.reweighter import Reweighter
from metaweight.reweighter.clean_samples import out_of_fold_outputs
from metaweight.reweighter.dense_net import DenseNet
from metaweight.reweighter.inputs import Inputs
from metaweight.reweighter.samples import TensorSamples
from metaweight.reweighter.settings import Settings
from metaweight.reweighter.training import USUAL, descent, logits_of

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


METHODS = {
    "ce": "cross-entropy",
    "reweighter": "Reweighter",
    "ce alone": "cross-entropy, no clean samples",
    "pruned alone": "confident learning, no clean samples",
    "reweighter alone": "Reweighter, no clean samples",
}


def network(inputs: int, classes: int, seed: int) -> nn.Module:
    """Return the network that the estimator makes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DenseNet(inputs, classes).double()


def trained(data: LabelledTensors, settings: Settings) -> nn.Module:
    """Return the estimator's network, trained by cross-entropy as the estimator trains."""
    module = network(data.inputs.shape[1], data.num_classes, settings.seed)
    steps = settings.steps_of(len(data))
    optimizer, scheduler = descent(module, settings, steps)
    problem = FoldClassifier(
        "classifier",
        module=module,
        optimizer=optimizer,
        scheduler=scheduler,
        train_data_loader=TensorLoader(data, settings.batch_of(len(data)), seed=settings.seed),
    )
    config = EngineConfig(train_iters=steps, valid_step=steps + 1, device="cpu", progress=False)
    Engine([problem], config).run()
    return module


def pruned(data: LabelledTensors, settings: Settings) -> LabelledTensors:
    """Return the data without the labels that confident learning finds to be wrong."""
    found = out_of_fold_outputs(
        lambda: DenseNet(data.inputs.shape[1], data.num_classes).double(),
        TensorSamples(data.inputs, data.labels),
        data.labels,
        replace(settings, loss=F.cross_entropy, outputs=data.num_classes),
        USUAL,
    )
    return data.subset(~confident_learning(data.labels, logits=found).mask())


@dataclass(frozen=True)
class Case:
    """One seed of one set with one kind of noise."""

    samples: str
    noise: str
    seed: int

    def split(self, load: Callable[[], Arrays]) -> tuple[Arrays, Arrays, Arrays]:
        """Return noisy training, clean and test samples."""
        x, y = load()
        x, x_test, y, y_test = train_test_split(
            x, y, test_size=TEST_SHARE, stratify=y, random_state=self.seed
        )
        order = np.random.default_rng(self.seed).permutation(len(y))
        clean = np.concatenate([order[y[order] == c][:CLEAN_EACH] for c in np.unique(y)])
        rest = np.setdiff1d(order, clean)
        kind, rate = NOISES[self.noise]
        noisy = inject_label_noise(
            torch.from_numpy(y[rest]),
            rate,
            num_classes=len(np.unique(y)),
            kind=kind,
            generator=torch.Generator().manual_seed(self.seed),
        ).noisy.numpy()
        return (x[rest], noisy), (x[clean], y[clean]), (x_test, y_test)

    def accuracies(self, tuning: bool, given: Mapping[str, Any]) -> dict[str, float]:
        """Return the test accuracy of every method, in %; when tuning, of the first two."""
        torch.set_num_threads(1)
        (x, y), clean, test = self.split((TUNING_SETS if tuning else SETS)[self.samples])
        settings = Settings.of(Reweighter(random_state=self.seed, device="cpu", **given))
        inputs = Inputs.scaled(x)
        classes = len(np.unique(clean[1]))
        noisy = LabelledTensors(inputs.tensor(x), y, num_classes=classes)
        trusted = LabelledTensors(inputs.tensor(clean[0]), clean[1], num_classes=classes)

        def of_cross_entropy(data: LabelledTensors) -> float:
            predicted = logits_of(trained(data, settings), inputs.tensor(test[0])).argmax(1)
            return 100 * float((predicted.numpy() == test[1]).mean())

        def of_reweighter(clean: Arrays | None) -> float:
            model = Reweighter(random_state=self.seed, device="cpu", **given)
            return 100 * float(model.fit(x, y, clean=clean).score(*test))

        found = {"ce": of_cross_entropy(noisy.concat(trusted)), "reweighter": of_reweighter(clean)}
        if tuning:
            return found
        return found | {
            "ce alone": of_cross_entropy(noisy),
            "pruned alone": of_cross_entropy(pruned(noisy, settings)),
            "reweighter alone": of_reweighter(None),
        }


def measure(cases: Sequence[Case], arguments: argparse.Namespace) -> dict[Case, dict[str, float]]:
    """Return the accuracies of all cases; those whose record is there are read."""
    given = {
        name: ast.literal_eval(value)
        for name, _, value in (each.partition("=") for each in arguments.setting)
    }
    found, asked = {}, []
    for case in cases:
        path = arguments.out / name_of(case) if arguments.out else None
        if path is not None and path.exists():
            found[case] = json.loads(path.read_text())["accuracy"]
        else:
            asked.append(case)
    measured = Parallel(n_jobs=arguments.jobs, return_as="generator")(
        delayed(case.accuracies)(arguments.tuning, given) for case in asked
    )
    for case, accuracy in zip(asked, measured, strict=True):
        found[case] = accuracy
        if arguments.out:
            record = {**asdict(case), "settings": given, "accuracy": accuracy}
            text = json.dumps(record | {"versions": versions("cpu")}, indent=1)
            write_text(arguments.out / name_of(case), text + "\n")
    return found


def name_of(case: Case) -> str:
    """Return the name of the record of a case."""
    words = f"{case.samples} {case.noise.replace(' %', '')} seed{case.seed}"
    return words.replace(" ", "-") + ".json"


def cases_of(tuning: bool, seeds: int, noises: Sequence[str]) -> list[Case]:
    """Return all cases; those of the choice of defaults have other sets and seeds."""
    first = 100 if tuning else 0
    return [
        Case(name, noise, seed)
        for name in (TUNING_SETS if tuning else SETS)
        for noise in noises
        for seed in range(first, first + seeds)
    ]


def table(found: Mapping[Case, Mapping[str, float]]) -> str:
    """Return the mean accuracy of each method for each set and noise, and over all."""
    groups: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for case, accuracy in found.items():
        groups.setdefault((case.samples, case.noise), []).append(accuracy)
    methods = [name for name in METHODS if name in next(iter(found.values()))]
    lines = [
        "| data | noise | " + " | ".join(METHODS[name] for name in methods) + " |",
        "|:--|:--" + "|--:" * len(methods) + "|",
    ]
    for (name, noise), of_group in [*groups.items(), (("**all**", ""), list(found.values()))]:
        means = [statistics.fmean(each[method] for each in of_group) for method in methods]
        lines.append(f"| {name} | {noise} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tuning", action="store_true", help="other sets and seeds")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", action="append", choices=[*NOISES])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="folder of the records (default: results)")
    arguments = parser.parse_args(given)
    if arguments.out is None and not arguments.tuning and not arguments.setting:
        arguments.out = RESULTS
    cases = cases_of(arguments.tuning, arguments.seeds, arguments.noise or [*NOISES])
    found = measure(cases, arguments)
    print(table({case: found[case] for case in cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
