"""The same programs on betty-ml 0.2.1 and here end at the same parameters.

Tolerance: relative 1e-6 in float64. Betty moves parameters by +eps, -2 eps, +eps and so returns
them to within rounding, where metaweight restores them exactly; over 60 steps the difference grows
to about 1e-12, so 1e-6 leaves room for chaos in the dynamics and none for another algorithm.
"""

from __future__ import annotations

import pytest
import torch
from support.programs import (
    Options,
    betty,
    logistic_regression,
    meta_weight_net,
    metaweight,
    three_levels,
    trajectory,
    two_leaves,
)

pytest.importorskip("betty")

# Betty frees the graph of an upper loss before it is done with it unless told otherwise.
KEPT = {"retain_graph": True}
ADAM = {"optimizer": torch.optim.Adam, "optimizer_settings": {"lr": 0.02}}

CASES = {
    "meta-weight-net": (meta_weight_net, Options(), 60),
    "unroll": (meta_weight_net, Options(inner={"unroll_steps": 5}), 60),
    "warm-up": (meta_weight_net, Options(inner={"warmup_steps": 7}), 40),
    "warm-up inside an unroll": (
        meta_weight_net,
        Options(inner={"warmup_steps": 7, "unroll_steps": 5}),
        60,
    ),
    "roll-back": (meta_weight_net, Options(engine={"roll_back": True}), 40),
    "roll-back of an unroll": (
        meta_weight_net,
        Options(engine={"roll_back": True}, inner={"unroll_steps": 5}),
        60,
    ),
    "clipping": (meta_weight_net, Options(inner={"gradient_clipping": 0.05}), 40),
    "upper accumulation": (meta_weight_net, Options(outer={"gradient_accumulation": 3}), 60),
    "adam": (meta_weight_net, Options(**ADAM), 40),
    # Betty reads the rate that a scheduler has set since the step, and not that of the step.
    "sama on adam": (
        meta_weight_net,
        Options(
            inner={"type": "sama", "sama_adam_alpha": 1.0, "warmup_steps": 2},
            scheduler=False,
            **ADAM,
        ),
        40,
    ),
    "sama on sgd": (meta_weight_net, Options(inner={"type": "sama", "sama_adam_alpha": 1.0}), 40),
    "sama multitask": (
        meta_weight_net,
        Options(inner={"type": "sama", "sama_multitask": True, "sama_adam_alpha": 1e-2}),
        40,
    ),
    "darts multitask": (meta_weight_net, Options(inner={"darts_multitask": True}), 40),
    "neumann": (
        meta_weight_net,
        Options(inner={"type": "neumann", "neumann_iterations": 4, "neumann_alpha": 0.3}),
        40,
    ),
    "logistic regression": (logistic_regression, Options(inner={"unroll_steps": 10}), 100),
    "logistic regression, neumann": (
        logistic_regression,
        Options(inner={"unroll_steps": 10, "type": "neumann", "neumann_iterations": 5}),
        100,
    ),
    "three levels": (three_levels, Options(inner=KEPT, outer=KEPT), 40),
    "three levels, unroll": (
        three_levels,
        Options(inner={**KEPT, "unroll_steps": 2}, outer=KEPT),
        60,
    ),
    "three levels, roll-back": (
        three_levels,
        Options(engine={"roll_back": True}, inner=KEPT, outer=KEPT),
        40,
    ),
    "two leaves": (two_leaves, Options(outer=KEPT), 60),
    "two leaves, one of them steps on while the other keeps their upper problem waiting": (
        two_leaves,
        Options(inner={"unroll_steps": 3}, outer=KEPT),
        60,
    ),
    "two leaves, warm-up": (
        two_leaves,
        Options(inner={"warmup_steps": 5}, outer=KEPT),
        60,
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("share", [0.4, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_trajectory_equals_bettys(case: str, share: float) -> None:
    """The whole of a trajectory, and its beginning."""
    builder, options, length = CASES[case]
    steps = int(share * length)
    expected = trajectory(builder, betty(), options, steps)
    start = trajectory(builder, betty(), options, 0)
    actual = trajectory(builder, metaweight(), options, steps)
    for name, reference in expected.items():
        assert not torch.allclose(reference, start[name]), f"{name} did not move"
        torch.testing.assert_close(actual[name], reference, rtol=1e-6, atol=1e-9)
