"""Modules scripted by ``torch.jit``, whose backward passes torch's functions do not see.

Methods of first derivatives are compared with the same network unscripted, from the third step on,
when the script has been optimised. Tolerance: relative 1e-7, since the fused operations round
otherwise and differences divide that by the length of a displacement.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.naive import relative_error
from support.reweighting import Declared, Plain, network, program
from torch import Tensor, nn

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    Engine,
    FiniteDifference,
    Penalty,
    Reweighting,
    Unroll,
    ZeroOrder,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")


def engine_of(method: Any, kind: Any, *, scripted: bool) -> Engine:
    torch.default_generator.manual_seed(0)
    net: Any = network(dropout=0.2).double()
    return program(
        kind,
        config=Config(type=method, unroll_steps=2),
        net=torch.jit.script(net) if scripted else net,
    )


def hypergradients(engine: Engine) -> list[Tensor]:
    seen: list[Tensor] = []
    parameters = list(engine.judge.module.parameters())
    engine.judge.grad_callback = lambda: seen.extend(p.grad.clone() for p in parameters)
    torch.default_generator.manual_seed(1)
    for _ in range(6):
        engine.train_step()
    return seen


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (FiniteDifference(), Plain),
        (Reweighting(), Declared),
        (Reweighting(derivative="one_sided"), Declared),
        (Penalty(steps=2), Declared),
        (Unroll(product="finite_difference"), Declared),
        (ZeroOrder(), Plain),
    ],
)
def test_methods_of_first_derivatives_give_what_they_give_unscripted(
    method: Any, kind: Any
) -> None:
    found, expected = (
        hypergradients(engine_of(method, kind, scripted=each)) for each in (True, False)
    )
    assert relative_error(found, expected) < 1e-7


@pytest.mark.parametrize(
    "method",
    [
        Unroll(),
        Unroll(product="forward_over_reverse"),
        ConjugateGradient(),
        Reweighting(derivative="forward_mode"),
    ],
)
def test_the_others_are_refused(method: Any) -> None:
    message = (
        rf"'classifier' asks for {type(method).__name__}, .* 'module' of problem 'classifier' is "
        r"scripted or traced by torch.jit.*Config\(compile=True\).*Config\(type='darts'\)"
    )
    with pytest.raises(ConfigurationError, match=message):
        engine_of(method, Declared, scripted=True)


def test_so_are_scripted_modules_of_other_problems() -> None:
    engine = engine_of(Unroll(), Plain, scripted=False)
    part: Any = torch.jit.script(nn.Linear(1, 1))
    engine.judge.module.part = part
    with pytest.raises(ConfigurationError, match="'part' of problem 'judge' is scripted"):
        engine.set_dependency(engine.dependencies)
