"""Accuracy under label noise, and how well learned weights find the wrong labels.

On scikit-learn's digits by default, in minutes on a CPU; for CIFAR the protocol of
Meta-Weight-Net::

    python benchmarks/noisy_labels.py --noise 0.4 --noise-kind uniform

A smaller CIFAR experiment, half of the labels redrawn::

    python benchmarks/noisy_labels.py --dataset cifar10 --network resnet18 --per-class 2000 \
        --noise 0.5 --epochs 20 --batch-size 128 --lr 0.1 --constant-lr --method ce --method mixup

Writes ``summary.json`` (every run), ``summary.md`` (a table) and figures to ``--out``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from study.arguments import Options, at_least, make_parser, share, to_options
from study.protocols import CIFAR_NOISE, DIGITS_NOISE
from study.remedies import REMEDIES
from study.splits import DATASETS, Corruption
from study.study import run_study

_WEIGHTINGS = ("ce", *REMEDIES, "meta-weight-net", "meta-weight-net-normalised", "class-aware")
_DEFAULT_METHODS = (
    "ce",
    "ce+meta",
    "meta-weight-net",
    "meta-weight-net-normalised",
    "class-aware",
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line, or exit with a message about what is wrong in it."""
    parser = make_parser(__doc__.partition("\n")[0], _WEIGHTINGS, "results/noisy_labels")
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument(
        "--noise", type=share, default=0.4, help="share of relabelled training samples"
    )
    parser.add_argument(
        "--noise-kind",
        choices=("uniform", "flip"),
        default="uniform",
        help="to any class at random, or each class to the next one (default: %(default)s)",
    )
    parser.add_argument(
        "--network", choices=("resnet32", "resnet18"), help="for CIFAR (default: resnet32)"
    )
    parser.add_argument("--epochs", type=at_least(1), help="passes over the training split")
    parser.add_argument("--batch-size", type=at_least(1), help="samples of a batch")
    parser.add_argument("--per-class", type=at_least(1), help="training samples of each class")
    parser.add_argument(
        "--constant-lr", action="store_true", help="keep the learning rate constant"
    )
    given = parser.parse_args(arguments)
    if given.network is not None and given.dataset == "digits":
        parser.error("argument --network: digits have a network of their own; leave it out")
    if given.epochs is not None and given.steps is not None:
        parser.error("argument --epochs: --steps already says how long to train; give one of them")
    protocol = {
        "digits": DIGITS_NOISE,
        "cifar10": CIFAR_NOISE,
        # 1 000 meta samples in total, as for the other data sets.
        "cifar100": replace(CIFAR_NOISE, meta_per_class=10),
    }[given.dataset]
    changes: dict[str, Any] = {
        "network": given.network,
        "batch_size": given.batch_size,
        "per_class": given.per_class,
        "milestones": () if given.constant_lr else None,
    }
    if given.epochs is not None:
        changes |= {"epochs": given.epochs, "steps": None}
    kept = {name: v for name, v in changes.items() if v is not None or name == "steps"}
    protocol = replace(protocol, **kept)
    corruption = Corruption(noise=given.noise, noise_kind=given.noise_kind)
    return to_options(parser, given, "noisy_labels", corruption, protocol, _DEFAULT_METHODS)


if __name__ == "__main__":
    sys.exit(run_study(parse()))
