"""The tables of README and documentation that come from sweeps of accuracy, by name."""

from __future__ import annotations

from collections.abc import Mapping

from .claims import SWEEPS
from .values import Column, Table

_TAILED = {
    "cross-entropy": "ce+meta",
    "class-balanced": "class-balanced+meta",
    "focal": "focal+meta",
    "Meta-Weight-Net": "meta-weight-net+meta",
    "class-aware weights": "class-aware+meta",
}
_NOISE = {
    "cross-entropy, without the clean samples": "ce",
    "cross-entropy": "ce+meta",
    "Meta-Weight-Net": "meta-weight-net",
    "Meta-Weight-Net, normalised weights": "meta-weight-net-normalised",
    "class-aware weights": "class-aware",
}
_REMEDIES = {
    "cross-entropy": "ce",
    "soft bootstrapping": "soft-bootstrapping",
    "hard bootstrapping": "hard-bootstrapping",
    "generalised cross-entropy": "gce",
    "symmetric cross-entropy": "sce",
    "mixup, α = 32": "mixup",
    "moving average, β = .99": "ema",
    "online confident learning": "ocl",
    "confident learning, pruned": "prune",
    "ensemble, resampled to 60 %": "ensemble-resample",
    "ensemble, reweighted by rank": "ensemble-reweight",
    "Meta-Weight-Net, normalised weights": "meta-weight-net-normalised",
}
_SIMPLE = {
    "cross-entropy": "ce+meta",
    "cross-entropy, then the clean samples alone": "fine-tune",
    "generalised cross-entropy": "gce+meta",
    "confident learning, pruned": "prune+meta",
    "learned weights": "meta-weight-net-normalised+meta",
    "learned weights, which do not train on the clean samples": "meta-weight-net-normalised",
}
_ECONOMIES = {
    "central differences, all layers, every step": "",
    "one-sided": "/one-sided",
    "one-sided, last convolution block and classifier": "/last-block",
    "one-sided, classifier alone": "/last-layer",
    "one-sided, three of the seven layers, drawn again each time": "/sampled-layers",
    "every 4 steps": "/every-4",
    "every 8 steps": "/every-8",
    "`AdaptiveInterval`": "/adaptive",
}
AGAINST_NOISE = {
    "cross-entropy, without the clean samples": "ce",
    "cross-entropy": "ce+meta",
    "generalised cross-entropy": "gce+meta",
    "early-learning regularisation (ELR)": "elr+meta",
    "mixup": "mixup+meta",
    "cross-entropy, then the clean samples alone": "fine-tune",
    "confident learning, pruned": "prune+meta",
    "Meta-Weight-Net": "meta-weight-net-normalised+meta/one-sided",
    "Meta-Weight-Net, exponential, after a warm-up": (
        "meta-weight-net-normalised+meta+warm-up+exponential/one-sided"
    ),
    "the same over ELR": "meta-weight-net-normalised+meta+warm-up+early+exponential/one-sided",
    "class-aware weights": "class-aware+meta/one-sided",
    "class-aware weights over ELR": "class-aware+meta+early/one-sided",
}
AGAINST_TAILS = {
    "cross-entropy, without the clean samples": "ce",
    "cross-entropy": "ce+meta",
    "class-balanced": "class-balanced+meta",
    "focal": "focal+meta",
    "deferred reweighting": "drw+meta",
    "LDAM, deferred reweighting": "ldam-drw+meta",
    "Balanced Softmax": "logit-adjusted+meta",
    "mixup": "mixup+meta",
    "Meta-Weight-Net": "meta-weight-net-normalised+meta/one-sided",
    "class-aware weights": "class-aware+meta/one-sided",
    "class-aware weights over Balanced Softmax": (
        "class-aware+meta+balanced+warm-up+exponential/one-sided"
    ),
}
_AGAINST_BOTH = {
    title: method
    for title, method in {**AGAINST_NOISE, **AGAINST_TAILS}.items()
    if method in SWEEPS["cifar-tail-noise"].methods
}
_BEST_AGAINST_NOISE = {
    title: method
    for title, method in AGAINST_NOISE.items()
    if method in SWEEPS["cifar-flip"].methods
}
_CLEAN = {
    title: method
    for title, method in AGAINST_NOISE.items()
    if method in SWEEPS["cifar-worst-clean1"].methods
}
_SHORT = ("cross-entropy", "class-balanced", "Meta-Weight-Net", "class-aware weights")
_TAILED_NOISE = [
    Column("learning rate tuned", "digits-tailed-noise"),
    Column("learning rate .05, as for clean labels", "digits-tailed-noise-usual-lr"),
]
_RATES = [
    Column("learning rate tuned", "digits-noise"),
    Column("learning rate .05", "digits-noise-usual-lr"),
]


def _clean(sweep: str, number: int) -> Column:
    """Return a column of the accuracy with a number of clean samples a class."""
    return Column(f"{number} a class", sweep if number == 10 else f"{sweep}-clean{number}")


TABLES: Mapping[str, Table] = {
    "digits-tailed-noise": Table(_TAILED, _TAILED_NOISE, best=True),
    "digits-tailed-noise-readme": Table(
        {title: _TAILED[title] for title in _SHORT}, _TAILED_NOISE, best=True
    ),
    "digits-noise-readme": Table(
        {title: method for title, method in _NOISE.items() if method != "ce"}, _RATES
    ),
    "digits-economies": Table(
        {title: f"meta-weight-net-normalised{end}" for title, end in _ECONOMIES.items()},
        [
            Column("last", "digits-economies"),
            Column("best", "digits-economies", "best"),
            Column("steps of the weight network", "digits-economies", "upper"),
        ],
    ),
    "digits-noise": Table(
        _NOISE,
        [
            *_RATES,
            *(
                Column(f"AUC of {score}, {rate}", f"digits-noise{end}", name)
                for score, name in (("1 − weight", "weight"), ("the loss", "loss"))
                for rate, end in (("tuned", ""), (".05", "-usual-lr"))
            ),
        ],
    ),
    "digits-remedies": Table(
        _REMEDIES,
        [
            Column("last", "digits-remedies"),
            Column("best", "digits-remedies", "best"),
            Column("precision of the rejected", "digits-remedies", "precision"),
            Column("recall", "digits-remedies", "recall"),
        ],
        best=True,
    ),
    "digits-simple": Table(
        _SIMPLE,
        [Column("last", "digits-simple"), Column("best", "digits-simple", "best")],
        best=True,
    ),
    **{
        sweep: Table(rows, [Column("last", sweep), Column("best", sweep, "best")], best=True)
        for sweep, rows in (
            ("cifar-worst", AGAINST_NOISE),
            ("cifar-uniform", AGAINST_NOISE),
            ("cifar-flip", _BEST_AGAINST_NOISE),
            ("cifar-random1", _BEST_AGAINST_NOISE),
            ("cifar-tail-100", AGAINST_TAILS),
            ("cifar-tail-10", AGAINST_TAILS),
            ("cifar-tail-noise", _AGAINST_BOTH),
        )
    },
    **{
        f"{sweep}-clean": Table(_CLEAN, [_clean(sweep, n) for n in (1, 2, 5, 10, 50, 100)])
        for sweep in ("cifar-worst", "cifar-uniform")
    },
    "published-tail-100": Table(
        {
            "cross-entropy, without the clean samples": "ce",
            "Meta-Weight-Net": "meta-weight-net/one-sided",
            "class-aware weights": "class-aware/one-sided",
        },
        [
            Column("last", "published-tail-100"),
            Column("best", "published-tail-100", "best"),
        ],
    ),
    "digits-tailed": Table(_TAILED, [Column("accuracy", "digits-tailed")], best=True),
}
