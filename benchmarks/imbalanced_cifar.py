"""Accuracy on long-tailed classes, optionally with label noise: learned against fixed weights.

The protocol of Meta-Weight-Net for long-tailed CIFAR by default; with ``--dataset digits`` the same
comparison in minutes on a CPU, without any download::

    python benchmarks/imbalanced_cifar.py --dataset digits --noise 0.4

Writes ``summary.json`` (every run), ``summary.md`` (a table) and figures to ``--out``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from study.arguments import Options, factor, make_parser, not_negative, share, to_options
from study.protocols import CIFAR_IMBALANCE, DIGITS_IMBALANCE, DIGITS_IMBALANCE_NOISE
from study.splits import DATASETS, Corruption
from study.study import run_study

_WEIGHTINGS = ("ce", "class-balanced", "focal", "meta-weight-net", "class-aware")


_DEFAULT_METHODS = (
    "ce",
    "ce+meta",
    "class-balanced",
    "class-balanced+meta",
    "focal+meta",
    "meta-weight-net+meta",
    "class-aware+meta",
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line, or exit with a message about what is wrong in it."""
    parser = make_parser(__doc__.partition("\n")[0], _WEIGHTINGS, "results/imbalanced_cifar")
    parser.add_argument("--dataset", choices=DATASETS, default="cifar10")
    parser.add_argument(
        "--imbalance-factor",
        type=factor,
        help="largest over smallest class (default: 100 for CIFAR, 10 for digits)",
    )
    parser.add_argument(
        "--noise", type=share, default=0.0, help="share of uniformly relabelled training samples"
    )
    parser.add_argument(
        "--focal-gamma", type=not_negative, help="exponent of focal (default: 2, 1 for digits)"
    )
    given = parser.parse_args(arguments)
    methods = given.methods or _DEFAULT_METHODS
    if given.focal_gamma is not None and not any(name.startswith("focal") for name in methods):
        parser.error("argument --focal-gamma: focal is not among the methods asked for")
    digits = given.dataset == "digits"
    corruption = Corruption(given.imbalance_factor or (10.0 if digits else 100.0), given.noise)
    if digits:
        protocol = DIGITS_IMBALANCE_NOISE if given.noise > 0 else DIGITS_IMBALANCE
    else:
        protocol = CIFAR_IMBALANCE
    return to_options(parser, given, "imbalanced_cifar", corruption, protocol, methods)


if __name__ == "__main__":
    sys.exit(run_study(parse()))
