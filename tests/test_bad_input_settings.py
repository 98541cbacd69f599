"""Settings out of range: each is refused by name when it is given, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bad_input import Row, assert_refused
from support.bad_tools import refused

from metaweight import (
    MASOBA,
    SABA,
    SAMA,
    SOBA,
    AmIGO,
    ConjugateGradient,
    EngineConfig,
    FiniteDifference,
    Neumann,
    NonFinite,
    NormLogger,
    Nystrom,
    Penalty,
    Reinforce,
    StocBiO,
    Unroll,
    VarianceReduction,
    WeightCollapse,
    ZeroOrder,
)
from metaweight.averaging import EMAHook
from metaweight.consistency import (
    ICT,
    VAT,
    FixMatch,
    LearnedConsistencyWeight,
    LearnedThreshold,
    MeanTeacher,
    MixMatch,
    PiModel,
    PseudoLabel,
    Ramp,
    SampleWeightTable,
    SemiSupervisedProblem,
    UnlabelledWeightNet,
    ramp,
    sharpen,
)


def rows(kind: Callable[..., Any], cases: list[tuple[str, dict[str, Any]]]) -> dict[str, Row]:
    """A row for each of some settings, and the words of the message about it."""
    return {
        f"{kind.__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})": refused(
            words, lambda given=given: kind(**given)
        )
        for words, given in cases
    }


HYPERGRADIENTS = {
    **rows(FiniteDifference, [("FiniteDifference", {"alpha": 0})]),
    **rows(
        SAMA,
        [
            ("SAMA(alpha=-1.0) must be positive and finite; 1.0 is the paper's", {"alpha": -1.0}),
            ("SAMA(alpha=inf) must be positive", {"alpha": math.inf}),
            (
                "SAMA(preconditioner='diag') is not one of source, exact",
                {"preconditioner": "diag"},
            ),
        ],
    ),
    **rows(
        ConjugateGradient,
        [
            ("ConjugateGradient", {"iterations": -1}),
            ("iterations=True) must be an integer of at", {"iterations": True}),
            ("iterations=1.5) must be an integer", {"iterations": 1.5}),
            ("damping=-0.001) must be a number at least 0", {"damping": -1e-3}),
            ("damping='a') must be a number at least 0 and f", {"damping": "a"}),
            ("tolerance=1.0)  … below 1; it is relative", {"tolerance": 1.0}),
            ("tolerance=nan) must be a number", {"tolerance": math.nan}),
            ("warm='yes') must be True or False", {"warm": "yes"}),
            ("batches='new') is not one of recorded, fresh", {"batches": "new"}),
        ],
    ),
    **rows(
        SOBA,
        [
            ("SOBA(lr=0.0) must be a number above 0 and finite; it has to be", {"lr": 0.0}),
            ("SOBA(damping=-1.0) must be a number at least 0", {"damping": -1.0}),
            ("SOBA(batches='new') is not one of recorded, fresh", {"batches": "new"}),
        ],
    ),
    **rows(MASOBA, [("MASOBA(momentum=1.0) … below 1; it is the part", {"momentum": 1.0})]),
    **rows(SABA, [("SABA(table='sample') is not one of batch", {"table": "sample"})]),
    **rows(AmIGO, [("AmIGO(iterations=0) must be an integer of at le", {"iterations": 0})]),
    **rows(StocBiO, [("StocBiO(alpha=-1) must be a number above 0", {"alpha": -1})]),
    **rows(
        Neumann,
        [
            ("Neumann", {"iterations": -1}),
            ("iterations=-2) must be an integer of at least 0", {"iterations": -2}),
            ("alpha=0.0) must be a number above 0 and finite; the seri", {"alpha": 0.0}),
            ("damping=inf) must be a number at least 0", {"damping": math.inf}),
            ("Neumann(warm=2) must be True or False", {"warm": 2}),
            ("Neumann(batches=1) is not one of recorded, fresh", {"batches": 1}),
        ],
    ),
    **rows(
        Nystrom,
        [
            ("Nystrom(rank=0) must be an integer of at least 1", {"rank": 0}),
            ("damping=0) must be a number above 0 and finite; outside", {"damping": 0}),
            ("seed=-1) must be an integer of at least 0", {"seed": -1}),
        ],
    ),
    **rows(
        Penalty,
        [
            ("Penalty(form='bomb') is not one of f2sa, bome", {"form": "bomb"}),
            ("Penalty(strength=0.0) must be positive and finite; 1000 is", {"strength": 0.0}),
            ("Penalty(steps=0) must be an integer of at least 1", {"steps": 0}),
            ("Penalty(steps=True) must be an integer", {"steps": True}),
            ("Penalty(lr=-0.1) must be positive … leave it out", {"lr": -0.1}),
            ("Penalty(momentum=1.0) must be at least 0 and below 1", {"momentum": 1.0}),
        ],
    ),
    **rows(
        Unroll,
        [
            ("steps=0) must be an integer of at least 1, or None", {"steps": 0}),
            (
                "product='hessian') is not one of exact, forward_over_reverse",
                {"product": "hessian"},
            ),
            ("memory='none') is not one of flat, full, auto", {"memory": "none"}),
            (
                "use product='exact', or memory",
                {"memory": "full", "product": "finite_difference"},
            ),
            (
                "memory='auto', product='one_sided'): kept graphs are diff",
                {"memory": "auto", "product": "one_sided"},
            ),
            ("alpha=0.0) must be positive", {"alpha": 0.0}),
        ],
    ),
    **rows(
        ZeroOrder,
        [
            ("ZeroOrder(samples=0) must be an integer of at least 1; 8", {"samples": 0}),
            ("ZeroOrder(samples=True)", {"samples": True}),
            (
                "ZeroOrder(radius=0.0) must be positive and finite; give the length",
                {"radius": 0.0},
            ),
        ],
    ),
    **rows(
        Reinforce,
        [
            (
                "Reinforce(baseline='mean') is not one of none, start, leave_one",
                {"baseline": "mean"},
            ),
            ("samples=1) needs samples of at least 2; raise it, or use  … 'start'", {"samples": 1}),
            ("samples=0) needs samples of at least 1", {"baseline": "start", "samples": 0}),
        ],
    ),
}

EVERY = [("every= … integer of at least 1", {"every": every}) for every in (0, 1.5, True)]

HOOKS = {
    **rows(
        NonFinite,
        [
            ("NonFinite(policy='warn') is not one of raise, skip, stop", {"policy": "warn"}),
            ("NonFinite(in_a_row=0) must be an integer of at least 1", {"in_a_row": 0}),
            ("or None for any number", {"in_a_row": True}),
        ],
    ),
    **rows(
        EngineConfig,
        [("non_finite='warn') is not one of ignore, raise, skip, stop", {"non_finite": "warn"})],
    ),
    **rows(NormLogger, [(f"NormLogger({words}", given) for words, given in EVERY]),
    **rows(
        WeightCollapse,
        [(f"'c', {words}", {"problem": "c", **given}) for words, given in EVERY]
        + [
            (f"{name}=-0.1 … at least 0; 0 never warns", {"problem": "c", name: -0.1})
            for name in ("zero", "equal", "few")
        ],
    ),
    **rows(
        VarianceReduction,
        [
            ("VarianceReduction(problems='low') must be a list of names", {"problems": "low"}),
            ("(problems=[1]) must be a list … or left out for all", {"problems": [1]}),
        ],
    ),
    **rows(EMAHook, [("EMA(beta=1.0)", {"problem": "chase", "beta": 1.0})]),
}

CONSISTENCY = {
    **rows(
        PseudoLabel,
        [
            ("PseudoLabel(threshold=0.0)", {"threshold": 0.0}),
            ("(0, 1]", {"threshold": 1.5}),
            ("logit_scale=0.0", {"logit_scale": 0.0}),
        ],
    ),
    **rows(FixMatch, [("FixMatch(threshold=2.0)", {"threshold": 2.0})]),
    **rows(PiModel, [("PiModel(divergence='cosine') … mse, l1, kl", {"divergence": "cosine"})]),
    **rows(MeanTeacher, [("MeanTeacher", {"divergence": "KL"})]),
    **rows(
        VAT,
        [("epsilon=0.0", {"epsilon": 0.0}), ("xi=-1.0", {"xi": -1.0}), ("powers=0", {"powers": 0})],
    ),
    **rows(ICT, [("alpha=-1.0", {"alpha": -1.0}), ("probabilities, logits", {"mix": "labels"})]),
    **rows(
        MixMatch,
        [
            ("temperature of 0.0", {"temperature": 0.0}),
            ("views=0", {"views": 0}),
            ("alpha=nan", {"alpha": math.nan}),
        ],
    ),
    "sharpen": refused("temperature of -1.0", lambda: sharpen(torch.ones(1, 2) / 2, -1.0)),
    **rows(LearnedConsistencyWeight, [("not a value of a softplus", {"initial": 0.0})]),
    **rows(
        LearnedThreshold,
        [
            ("strictly between", {"initial": 1.0}),
            ("not a width", {"initial": 0.5, "temperature": 0.0}),
            ("no threshold", {"classes": 0}),
        ],
    ),
    **rows(
        UnlabelledWeightNet,
        [("strictly between", {"initial": 0.0}), ("no hidden", {"hidden_size": 0})],
    ),
    "SampleWeightTable": refused("at least 1 sample", lambda: SampleWeightTable(0)),
    **rows(
        Ramp,
        [
            ("not a weight", {"weight": -1.0}),
            ("not a weight", {"weight": math.nan}),
            ("sigmoid, linear, constant", {"shape": "cosine"}),
            ("not a share", {"end": 1.5}),
            ("not a share", {"end": 0.0}),
            ("not a number of steps", {"end": 0}),
            ("is not a number", {"end": True}),
            ("mixes", {"begin": 10, "end": 0.5}),
            ("does not begin before", {"begin": 0.6, "end": 0.5}),
        ],
    ),
    "ramp: shape": refused("sigmoid, linear, constant", lambda: ramp("exp", 1, 2)),  # type: ignore[arg-type]
    "ramp: length": refused("length 0", lambda: ramp("linear", 1, 0)),
    **{
        f"SemiSupervisedProblem: {case}": refused(
            words, lambda given=given: SemiSupervisedProblem("student", **given)
        )
        for case, (words, given) in {
            "name": ("an object rather than a name", {"method": "pi"}),
            "class": ("an object rather than a name", {"method": PiModel}),
            "no teacher": (
                "MeanTeacher, which needs a teacher … EMAHook('student'",
                {"method": MeanTeacher()},
            ),
            "teacher of another": (
                "averages problem 'other'",
                {"method": ICT(), "teacher": EMAHook("other")},
            ),
            "no strong views": ("needs strong_augment", {"method": FixMatch()}),
            "consistency weight": (
                "consistency_weight=-1.0",
                {"method": PiModel(), "consistency_weight": -1.0},
            ),
            "entropy weight": (
                "entropy_weight=nan",
                {"method": PiModel(), "entropy_weight": math.nan},
            ),
            "normalise": ("part, batch", {"method": PiModel(), "normalise": "mean"}),
        }.items()
    },
}

TABLE = HYPERGRADIENTS | HOOKS | CONSISTENCY


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_by_name_and_draws_nothing(name: str) -> None:
    assert_refused(TABLE[name])
