"""Every hypergradient that works from a gradient, with settings for small problems."""

from __future__ import annotations

from typing import Any

from metaweight import (
    MASOBA,
    SAMA,
    SOBA,
    AmIGO,
    ConjugateGradient,
    FiniteDifference,
    Neumann,
    Nystrom,
    Penalty,
    Reweighting,
    Unroll,
)

GRADIENT_METHODS: dict[str, Any] = {
    "darts": FiniteDifference(),
    "reweighting, central": Reweighting(),
    "reweighting, one-sided": Reweighting(derivative="one_sided", alpha=1e-6),
    "reweighting, forward": Reweighting(derivative="forward_mode"),
    "sama": SAMA(alpha=0.01),
    "sama, exact": SAMA(alpha=0.01, preconditioner="exact"),
    "neumann": Neumann(iterations=2, alpha=0.1),
    # The Hessians of small networks have negative eigenvalues, which these two refuse undamped.
    "cg": ConjugateGradient(iterations=2, damping=1.0),
    "nystrom": Nystrom(rank=5, damping=1.0),
    "soba": SOBA(),
    "masoba": MASOBA(),
    "amigo, recorded": AmIGO(lr=0.01, iterations=2, batches="recorded"),
    "neumann, warm": Neumann(iterations=2, alpha=0.1, warm=True),
    "penalty, f2sa": Penalty(strength=1e6, steps=3),
    "penalty, bome": Penalty(strength=1e6, steps=3, form="bome"),
    "unroll": Unroll(),
    "unroll, forward over reverse": Unroll(product="forward_over_reverse"),
    "unroll, difference": Unroll(product="finite_difference"),
    "unroll, one-sided": Unroll(product="one_sided", alpha=1e-6),
    "unroll, kept graphs": Unroll(memory="full"),
    "unroll, graphs if they fit": Unroll(memory="auto"),
}
