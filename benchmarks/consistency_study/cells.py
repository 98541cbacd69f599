"""The cells of the comparison: a method with a divergence, and the weights it is tried with."""

from __future__ import annotations

from dataclasses import dataclass

from metaweight.consistency import (
    ICT,
    VAT,
    ConsistencyMethod,
    FixMatch,
    MeanTeacher,
    MixMatch,
    PiModel,
    PseudoLabel,
)

SUPERVISED = "supervised"
LEARNED = "+learned"
METHODS = ("pseudo_label", "pi_model", "vat", "mean_teacher", "ict", "mixmatch", "fixmatch")
DIVERGENCES = ("mse", "l1", "kl", "js")

# Half an order of magnitude apart, around weights at which the divergences are of equal size.
WEIGHTS = {
    "mse": (3.0, 10.0, 30.0, 100.0),
    "l1": (1.0, 3.0, 10.0, 30.0),
    "kl": (0.1, 0.3, 1.0, 3.0),
    "js": (0.3, 1.0, 3.0, 10.0),
}


@dataclass(frozen=True)
class Cell:
    """A method with a divergence.

    Attributes:
        method: ``"supervised"`` or one of :data:`METHODS`, with ``+learned`` where an upper problem
            weights the unlabelled samples.
        divergence: One of :data:`DIVERGENCES`; none for ``"supervised"``.
    """

    method: str
    divergence: str | None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.method if self.divergence is None else f"{self.method}, {self.divergence}"

    @property
    def learned(self) -> bool:
        """Whether an upper problem weights the unlabelled samples."""
        return self.method.endswith(LEARNED)

    @property
    def weights(self) -> tuple[float, ...]:
        """Consistency weights to choose from."""
        return (0.0,) if self.divergence is None else WEIGHTS[self.divergence]

    def consistency(self, epsilon: float) -> ConsistencyMethod:
        """Return the method; a supervised one has weight 0."""
        divergence = self.divergence or "kl"
        made: dict[str, ConsistencyMethod] = {
            SUPERVISED: PseudoLabel(another_view=False),
            "pseudo_label": PseudoLabel(divergence=divergence),
            "pi_model": PiModel(divergence),
            "vat": VAT(epsilon, divergence),
            "mean_teacher": MeanTeacher(divergence),
            "ict": ICT(alpha=1.0, divergence=divergence),
            "mixmatch": MixMatch(divergence=divergence),
            "fixmatch": FixMatch(divergence=divergence),
        }
        return made[self.method.removesuffix(LEARNED)]
