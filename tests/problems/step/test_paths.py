"""What a hypergradient of one's own may return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small import bilevel

from metaweight import Config, Hypergradient, HypergradientError, Product, Status


class Returning(Hypergradient):
    """Returns what it was made with."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def vjp(self, lower: Any, vector: Any, upper_parameters: Any) -> Any:
        return self.made(upper_parameters)


WRONG = {
    "too few": (lambda t: Product([], Status("Own")), "a Product of nothing"),
    "too many": (lambda t: Product([*t, *t], Status("Own")), r"a Product of shapes \(1,\), \(1,\)"),
    "another shape": (
        lambda t: Product([torch.zeros(2, dtype=torch.float64)], Status("Own")),
        r"a Product of shapes \(2,\)",
    ),
    "none": (lambda t: Product([None], Status("Own")), "a Product of shapes NoneType"),
    "a bare list": (lambda t: [torch.zeros_like(p) for p in t], "returned list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_product_is_refused_by_the_name_of_its_class(case: str) -> None:
    made, returned = WRONG[case]
    engine = bilevel(inner_config=Config(type=Returning(made)))
    before = engine.outer.module.w.detach().clone()
    with pytest.raises(HypergradientError, match=f"Returning of problem 'inner' .*{returned}"):
        engine.run()
    assert torch.equal(engine.outer.module.w, before)


def test_a_product_with_a_graph_leaves_none_in_gradients() -> None:
    """Kept in ``.grad``, it would hold the memory of every step."""
    engine = bilevel(
        inner_config=Config(type=Returning(lambda t: Product([p * 2 for p in t], Status("Own"))))
    )
    graphs: list[bool] = []
    engine.outer.grad_callback = lambda: graphs.append(engine.outer.module.w.grad.requires_grad)
    engine.run()
    assert graphs
    assert not any(graphs)
