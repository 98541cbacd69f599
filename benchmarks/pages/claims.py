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
_SIMPLE = (
    "ce+meta",
    "fine-tune",
    "gce+meta",
    "prune+meta",
    "meta-weight-net-normalised",
    "meta-weight-net-normalised+meta",
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
_WRONG = f"{_CIFAR} --per-class 1000"
_HUMAN = f"{_WRONG} --human-labels CIFAR-10_human.pt --label-set"
_UNIFORM = f"{_WRONG} --noise 0.4"
_AGAINST_NOISE = (
    "ce",
    "ce+meta",
    "gce+meta",
    "elr+meta",
    "fine-tune",
    "prune+meta",
    "meta-weight-net-normalised/one-sided",
    "class-aware/one-sided",
    "meta-weight-net-normalised+meta/one-sided",
)
_AGAINST_TAILS = (
    "ce",
    "ce+meta",
    "class-balanced+meta",
    "focal+meta",
    "drw+meta",
    "ldam-drw+meta",
    "logit-adjusted+meta",
    "mixup+meta",
    "meta-weight-net-normalised+meta",
    "class-aware+meta",
    "class-aware+meta/one-sided",
)


def _tuning() -> dict[str, Sweep]:
    """Return the sweeps that learning rates were chosen by, on seeds that are not reported."""
    noise = ("meta-weight-net-normalised/one-sided", "meta-weight-net-normalised+meta/one-sided")
    tail = ("class-aware/one-sided", "class-aware+meta/one-sided")
    sweeps = {}
    for name, setting, tried in (("noise", _UNIFORM, noise), ("tail", _TAIL, tail)):
        held_out = f"{setting} --tuning --seeds 100 101"
        for rate in (0.03, 0.1, 0.3):
            sweeps[f"tuning-{name}-{rate}"] = Sweep(
                f"{held_out} --lr {rate}", ("ce+meta",), f"tuning/lr{rate}"
            )
        for rate in (0.001, 0.01):
            sweeps[f"tuning-meta-{name}-{rate}"] = Sweep(
                f"{held_out} --meta-lr {rate}", tried, f"tuning/meta-lr{rate}"
            )
    return sweeps


SWEEPS: Mapping[str, Sweep] = {
    "digits-tailed-noise": Sweep(_TAILED_NOISE, _WEIGHTINGS, "tuned"),
    "digits-tailed-noise-usual-lr": Sweep(
        f"{_TAILED_NOISE} --lr 0.05 --meta-lr 0.01", _WEIGHTINGS, "usual-lr"
    ),
    "digits-noise": Sweep(_NOISE, ("ce", "ce+meta", *_LEARNED), "tuned"),
    "digits-noise-usual-lr": Sweep(f"{_NOISE} --lr 0.05", ("ce", "ce+meta", *_LEARNED), "usual-lr"),
    "digits-remedies": Sweep(f"{_NOISE} --lr 0.05", _REMEDIES, "usual-lr"),
    "digits-simple": Sweep(f"{_NOISE} --lr 0.05", _SIMPLE, "usual-lr"),
    "digits-economies": Sweep(
        _NOISE, ("ce+meta", "meta-weight-net-normalised", *_ECONOMIES), "tuned"
    ),
    "digits-tailed": Sweep(
        "--dataset digits --imbalance-factor 50 --seeds 5 --evaluations 20", _WEIGHTINGS, "tuned"
    ),
    **_tuning(),
    "cifar-worst": Sweep(f"{_HUMAN} worst --seeds 3", _AGAINST_NOISE, "tuned"),
    "cifar-tail-100": Sweep(f"{_TAIL} --seeds 3", _AGAINST_TAILS, "tuned"),
}
