"""The methods compared, by their names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .economies import ECONOMIES

LEARNED = ("meta-weight-net", "meta-weight-net-normalised", "class-aware")
_WITH_META = "+meta"


@dataclass(frozen=True)
class Method:
    """A weighting of samples, and whether the classifier trains on the meta samples as well.

    A learned weighting always uses the meta samples for its *upper* loss; ``with_meta`` adds them
    to the classifier's training data, so that every method can be given the same data.

    Args:
        weighting: ``"ce"``, ``"class-balanced"``, ``"focal"`` or one of :data:`LEARNED`.
        with_meta: Whether the classifier trains on train ∪ meta.
        economy: How the hypergradient of a learned weighting is made cheaper.
    """

    weighting: str
    with_meta: bool
    economy: str = ""

    @property
    def name(self) -> str:
        """The name on the command line, such as ``"ce+meta"``."""
        economy = f"/{self.economy}" if self.economy else ""
        return self.weighting + economy + (_WITH_META if self.with_meta else "")

    @property
    def learned(self) -> bool:
        """Whether an upper problem learns the weights."""
        return self.weighting in LEARNED

    @classmethod
    def of_name(cls, name: str) -> Method:
        """Return the method with a name from the command line."""
        weighting, _, economy = name.removesuffix(_WITH_META).partition("/")
        return cls(weighting, name.endswith(_WITH_META), economy)


def names_of(weightings: Sequence[str]) -> list[str]:
    """Return the names of every weighting on train, and on train + meta, economies included."""
    return [
        Method(w, with_meta, economy).name
        for w in weightings
        for economy in (ECONOMIES if w in LEARNED else [""])
        for with_meta in (False, True)
    ]
