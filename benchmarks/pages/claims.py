"""What is claimed: the sweeps of accuracy, by name."""

from __future__ import annotations

from collections.abc import Mapping

from .sweeps import Sweep

_WEIGHTINGS = (
    "ce+meta",
    "class-balanced+meta",
    "focal+meta",
    "meta-weight-net+meta",
    "class-aware+meta",
)
_LEARNED = ("meta-weight-net", "meta-weight-net-normalised", "class-aware")
_REMEDIES = (
    "ce",
    "soft-bootstrapping",
    "hard-bootstrapping",
    "gce",
    "sce",
    "mixup",
    "ema",
    "ocl",
    "prune",
    "ensemble-resample",
    "ensemble-reweight",
    "meta-weight-net-normalised",
)
_CHEAPER = (
    "one-sided",
    "last-block",
    "last-layer",
    "sampled-layers",
    "every-4",
    "every-8",
    "adaptive",
)
_ECONOMIES = tuple(f"meta-weight-net-normalised/{name}" for name in _CHEAPER)
_TAILED_NOISE = "--dataset digits --imbalance-factor 10 --noise 0.4 --seeds 5 --evaluations 20"
_NOISE = "--dataset digits --noise 0.4 --seeds 5 --evaluations 20"

# Eight hundred steps of 64: a few passes over the data, minutes on a processor.
_CIFAR = "--dataset cifar10 --steps 800 --batch-size 64 --evaluations 2"
_TAIL = f"{_CIFAR} --imbalance-factor 100"
_WRONG = f"{_CIFAR} --per-class 1000 --noise 0.4"
_RATES = (0.03, 0.1, 0.3)
_META_RATES = (0.001, 0.01)
_TUNED = {"tail": _TAIL, "noise": _WRONG}


def _tuning() -> dict[str, Sweep]:
    """Return the sweeps that learning rates were chosen by, on seeds that are not reported."""
    sweeps = {}
    for name, setting in _TUNED.items():
        held_out = f"{setting} --tuning --seeds 100 101"
        for rate in _RATES:
            sweeps[f"tuning-{name}-{rate}"] = Sweep(
                f"{held_out} --lr {rate}", ("ce+meta",), f"tuning/lr{rate}"
            )
        for rate in _META_RATES:
            sweeps[f"tuning-meta-{name}-{rate}"] = Sweep(
                f"{held_out} --meta-lr {rate}", _TUNED_LEARNED[name], f"tuning/meta-lr{rate}"
            )
    return sweeps


_TUNED_LEARNED = {
    "tail": ("class-aware+meta/one-sided",),
    "noise": ("meta-weight-net-normalised+meta/one-sided",),
}


SWEEPS: Mapping[str, Sweep] = {
    "digits-tailed-noise": Sweep(_TAILED_NOISE, _WEIGHTINGS, "tuned"),
    "digits-tailed-noise-usual-lr": Sweep(
        f"{_TAILED_NOISE} --lr 0.05 --meta-lr 0.01", _WEIGHTINGS, "usual-lr"
    ),
    "digits-noise": Sweep(_NOISE, ("ce", "ce+meta", *_LEARNED), "tuned"),
    "digits-noise-usual-lr": Sweep(f"{_NOISE} --lr 0.05", ("ce", "ce+meta", *_LEARNED), "usual-lr"),
    "digits-remedies": Sweep(f"{_NOISE} --lr 0.05", _REMEDIES, "usual-lr"),
    "digits-economies": Sweep(
        _NOISE, ("ce+meta", "meta-weight-net-normalised", *_ECONOMIES), "tuned"
    ),
    "digits-tailed": Sweep(
        "--dataset digits --imbalance-factor 50 --seeds 5 --evaluations 20", _WEIGHTINGS, "tuned"
    ),
    **_tuning(),
}
