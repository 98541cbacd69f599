"""Find wrong labels by cross-validation, leave them out and train again.

Digits with 40 % of the labels replaced by another class. Three networks predict the samples they
did not train on; labels that their predictions contradict are written to a table and pruned. They
train for a short time only: with longer training networks memorise wrong labels, and predict
worse. ::

    python examples/confident_learning.py --out results

Needs cleanlab: ``pip install 'metaweight[noise]'``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import Engine, EngineConfig, ImplicitProblem
from metaweight.data import LabelledTensors, TensorLoader, load_digits
from metaweight.models import DigitsNet
from metaweight.noise import CrossValidated, CrossValidatedConfidence, inject_label_noise


class Classifier(ImplicitProblem):
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.module(inputs), labels)


def make_optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def noisy_digits(rate: float, seed: int) -> tuple[LabelledTensors, LabelledTensors]:
    """Return training data with wrong labels, and clean test data."""
    train, test = load_digits(seed=seed)
    noise = inject_label_noise(
        train.labels,
        rate,
        num_classes=10,
        kind="uniform_exclusive",
        generator=torch.Generator().manual_seed(seed),
    )
    return train.with_labels(noise.noisy), test


def accuracy(data: LabelledTensors, test: LabelledTensors, steps: int, seed: int) -> float:
    """Train a network on ``data`` and return its accuracy on ``test``."""
    net = DigitsNet(generator=torch.Generator().manual_seed(seed))
    problem = Classifier(
        "classifier",
        module=net,
        optimizer=make_optimizer(net),
        train_data_loader=TensorLoader(data, 100, seed=seed),
    )
    Engine([problem], EngineConfig(train_iters=steps, strategy="cpu")).run()
    net.eval()
    with torch.no_grad():
        return float((net(test.inputs).argmax(1) == test.labels).float().mean())


def precision_and_recall(found: CrossValidated) -> tuple[float, float]:
    """Compare the labels found with the wrong ones, which are known only in a simulation."""
    flagged, wrong = found.issues.mask(), found.data.wrong_labels
    right = float((flagged & wrong).sum())
    return right / max(int(flagged.sum()), 1), right / max(int(wrong.sum()), 1)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise", type=float, default=0.4, help="share of wrong labels")
    parser.add_argument("--search-steps", type=int, default=100, help="steps of each fold")
    parser.add_argument("--steps", type=int, default=250, help="steps of the final networks")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the table; a temporary one if left out")
    options = parser.parse_args(arguments)

    train, test = noisy_digits(options.noise, options.seed)
    search = CrossValidatedConfidence(
        DigitsNet,
        make_optimizer,
        folds=options.folds,
        steps=options.search_steps,
        seed=options.seed,
        device="cpu",
    )
    found = search.run(train)
    precision, recall = precision_and_recall(found)
    print(f"{len(found.issues)} of {len(train)} labels found to be wrong")
    print(f"precision {precision:.3f}, recall {recall:.3f}")

    before = accuracy(train, test, options.steps, options.seed)
    after = accuracy(found.pruned(), test, options.steps, options.seed)
    print(f"test accuracy: {before:.3f} on all labels, {after:.3f} without those found")

    folder = options.out or Path(tempfile.mkdtemp(prefix="confident_learning_"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"table: {found.write_csv(folder / 'label_issues.csv')}")
    return {"precision": precision, "recall": recall, "before": before, "after": after}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
