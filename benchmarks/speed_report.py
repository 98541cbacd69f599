"""Tables of the measurements of the step benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from turns import Outcome, Turn

BETTY = "betty-ml"
Row = dict[str, Any]


def table(outcomes: Mapping[str, Outcome], base: str, lower_steps: int = 1) -> list[Row]:
    """Return a row for every contender: times, ratios to ``base`` and to Betty, peak memory.

    Ratios of times are medians over the rounds, each of two neighbouring turns.

    Args:
        outcomes: Their measurements; the row of a failed contender has the error alone.
        base: The contender to compare with.
        lower_steps: Number of lower steps by which a step's time is divided.
    """
    betty = next((name for name in outcomes if name.startswith(BETTY)), None)
    if betty is not None and outcomes[betty].error is not None:
        betty = None
    rows = []
    for name, outcome in outcomes.items():
        row: Row = {"contender": name}
        if outcome.error is None:
            row |= _numbers(outcome, outcomes[base], lower_steps, base)
            if betty is not None:
                row["Betty takes times"] = ratio(outcomes[betty], outcome)
        else:
            row |= dict.fromkeys(_columns(base, betty))
        rows.append(row)
    if any(outcome.error is not None for outcome in outcomes.values()):
        rows = [row | {"failed": outcomes[row["contender"]].error} for row in rows]
    return rows


def ratio(above: Outcome, below: Outcome, of: str = "wall") -> float:
    """Return the ratio of the costs of two contenders, the median over the rounds.

    Args:
        above: Measurements of the one.
        below: Measurements of the other.
        of: ``"wall"`` or ``"cpu"`` for times, ``"peak"`` for the memory after the last round.
    """

    def value(turn: Turn) -> float:
        found: float = getattr(turn, of)
        return found

    if of == "peak":
        return value(above.turns[-1]) / value(below.turns[-1])
    pairs = zip(above.turns, below.turns, strict=True)
    return statistics.median(value(a) / value(b) for a, b in pairs)


def _columns(base: str, betty: str | None) -> list[str]:
    columns = ["median ms", "quartiles ms", f"times {base}", f"CPU times {base}"]
    columns += ["peak MiB", f"peak times {base}"]
    return columns if betty is None else [*columns, "Betty takes times"]


def _numbers(own: Outcome, against: Outcome, lower_steps: int, base: str) -> Row:
    times = [turn.wall * 1e3 / lower_steps for turn in own.turns]
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else 3 * times
    values = (
        middle,
        f"{low:.4g} – {high:.4g}",
        ratio(own, against),
        ratio(own, against, "cpu"),
        own.turns[-1].peak,
        ratio(own, against, "peak"),
    )
    return dict(zip(_columns(base, None), values, strict=True))
