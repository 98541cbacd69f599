"""Settings of the papers, by name.

``PRESETS[method][name]`` has the method's own settings, its weight and ramp, the learning rate of
Adam and, where there is a teacher, its decay. Names: ``"paper"``, the method's own publication or
its published code; ``"realistic"``, the protocol of Oliver et al., "Realistic Evaluation of Deep
Semi-Supervised Learning Algorithms" (NeurIPS 2018, arXiv:1804.09170) on SVHN as re-implemented in
PyTorch, whose ramp of 200 000 of 500 000 steps is a share of 0.4 here and whose terms are both
divided by the size of the batch (``normalise="batch"``); ``"usb"``, Wang et al., "USB: A Unified
Semi-supervised Learning Benchmark" (NeurIPS 2022, arXiv:2208.07204).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from metaweight.averaging import EMAHook
from metaweight.averaging.decay import WarmUp
from metaweight.problems import ConfigurationError

from .divergences import mse
from .fixmatch import FixMatch
from .ict import ICT
from .mean_teacher import MeanTeacher
from .method import ConsistencyMethod
from .mixmatch import MixMatch
from .pi_model import PiModel
from .problems import NormaliseBy
from .pseudo_label import PseudoLabel
from .ramps import Ramp
from .vat import VAT

_SUMMED_MSE = partial(mse, classes="sum", reduction="none")


@dataclass(frozen=True)
class Preset:
    """Settings of a method that were published together.

    Attributes:
        method: The method.
        ramp: Its weight and how that rises.
        lr: Learning rate of Adam; none where the publication trains otherwise.
        beta: Decay of the teacher, or of the average that is evaluated; none without one.
        warm_up: How the average starts.
        entropy_weight: Weight of the entropy of unlabelled samples.
        normalise: What the terms of the loss are divided by.
    """

    method: ConsistencyMethod
    ramp: Ramp
    lr: float | None = None
    beta: float | None = None
    warm_up: WarmUp = "none"
    entropy_weight: float = 0.0
    normalise: NormaliseBy = "part"

    def average(self, problem: str) -> EMAHook | None:
        """Return a hook that averages a problem as published, or ``None`` without an average."""
        if self.beta is None:
            return None
        return EMAHook(problem, self.beta, warm_up=self.warm_up)


PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "pseudo_label": {
        "paper": Preset(PseudoLabel(threshold=None), Ramp(3.0, "linear", end=0.6, begin=0.1)),
        "realistic": Preset(PseudoLabel(), Ramp(1.0), lr=3e-4, normalise="batch"),
        "usb": Preset(PseudoLabel(another_view=False), Ramp(1.0, "linear")),
    },
    "pi_model": {
        "paper": Preset(PiModel(target_grad=True), Ramp(100.0, end=80 / 300), lr=3e-3),
        "realistic": Preset(PiModel(), Ramp(20.0), lr=3e-4, normalise="batch"),
        "usb": Preset(PiModel(), Ramp(10.0, "linear")),
    },
    "vat": {
        "paper": Preset(VAT(epsilon=2.5), Ramp(1.0, "constant"), entropy_weight=1.0),
        "realistic": Preset(
            VAT(epsilon=1.0, divergence="reverse_kl"), Ramp(0.3), lr=3e-3, normalise="batch"
        ),
        "usb": Preset(VAT(epsilon=6.0), Ramp(0.3, "linear"), entropy_weight=0.06),
    },
    "mean_teacher": {
        "paper": Preset(MeanTeacher(), Ramp(100.0), beta=0.97, warm_up="mean_teacher"),
        "realistic": Preset(
            MeanTeacher(), Ramp(8.0), lr=4e-4, beta=0.95, warm_up="mean_teacher", normalise="batch"
        ),
        "usb": Preset(MeanTeacher(), Ramp(50.0, "linear"), beta=0.999),
    },
    "ict": {
        "paper": Preset(ICT(), Ramp(100.0, end=0.25), beta=0.999, warm_up="mean_teacher"),
        "realistic": Preset(
            ICT(divergence=_SUMMED_MSE, mix="logits"),
            Ramp(100.0),
            lr=4e-4,
            beta=0.999,
            warm_up="ict",
            normalise="batch",
        ),
    },
    "mixmatch": {
        "paper": Preset(
            MixMatch(interleave=True),
            Ramp(250.0, "linear", end=1 / 64),
            lr=2e-3,
            beta=0.999,
        ),
        "realistic": Preset(MixMatch(per_sample=False), Ramp(100.0), lr=3e-3, normalise="batch"),
        "usb": Preset(MixMatch(alpha=0.5), Ramp(100.0, "linear"), beta=0.999),
    },
    "fixmatch": {
        "paper": Preset(FixMatch(), Ramp(1.0, "constant"), beta=0.999),
        "usb": Preset(FixMatch(), Ramp(1.0, "constant")),
    },
}
"""Published settings by method and name."""


def preset(method: str, name: str = "paper") -> Preset:
    """Return published settings.

    Args:
        method: ``"pseudo_label"``, ``"pi_model"``, ``"vat"``, ``"mean_teacher"``, ``"ict"``,
            ``"mixmatch"`` or ``"fixmatch"``.
        name: ``"paper"``, ``"realistic"`` or ``"usb"``, where there are such settings.

    Raises:
        ConfigurationError: For an unknown method or name.
    """
    if method not in PRESETS:
        raise ConfigurationError(
            f"preset({method!r}) is not one of {', '.join(PRESETS)}; choose one of these."
        )
    if name not in PRESETS[method]:
        raise ConfigurationError(
            f"preset({method!r}, {name!r}) is not known; of this method there are: "
            f"{', '.join(PRESETS[method])}."
        )
    return PRESETS[method][name]
