"""Tests of graphs of tensor operations, run again compiled or one by one."""

from typing import Any

import pytest
import torch
from metaweight.engines.captured.operations import replay, traced
from torch import Tensor

VALUES = {
    "finite": [1.0, -3.0, 2.0],
    "an infinity": [1.0, -torch.inf, 2.0],
    "no number": [1.0, torch.nan, 2.0],
}


@pytest.mark.parametrize("compiled", [False, True])
def test_norms_of_a_list_are_those_of_its_tensors(compiled: bool) -> None:
    """Of both orders that steps ask for: by squares, and the largest magnitude."""
    first, second = torch.ones(3), torch.ones(2, 2)

    def norms() -> list[Tensor]:
        both = [first * 2, second - 1]
        wide = torch._foreach_norm(both, 2, dtype=torch.float64)
        return [*torch._foreach_norm(both, torch.inf), *torch._foreach_norm(both), *wide]

    graph = traced(norms)
    again = replay(graph, compiled=compiled)
    for values in VALUES.values():
        first.copy_(torch.tensor(values))
        found = again(graph.inputs)
        pair = [torch.tensor(values) * 2, torch.zeros(4)]
        lengths = [t.square().sum().sqrt() for t in pair]
        wide = [t.double().square().sum().sqrt() for t in pair]
        expected = [t.abs().max() for t in pair] + lengths + wide
        # float32: a sum of three squares rounds twice.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(
    ("capability", "own", "expected"),
    [("AVX512", None, {"cpp.simdlen": 256}), ("AVX512", 512, None), ("AVX2", None, None)],
)
def test_vectors_of_the_widest_kind_are_halved_unless_their_width_is_set(
    capability: str, own: int | None, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are wider ones than 256 bits, half of them holds a row of a small tensor."""
    asked: list[Any] = []

    def compiler(module: Any, inputs: Any, options: Any = None) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch._inductor, "compile", compiler)
    tensor = torch.ones(3)
    with torch._inductor.config.patch({"cpp.simdlen": own}):
        replay(traced(lambda: [tensor * 2]), compiled=True)
    assert asked == [expected]


def test_a_compiled_graph_leaves_the_recorded_one_as_it_was() -> None:
    """It is compiled from a copy, since what is recorded may be compared with it."""
    tensor = torch.ones(3)
    graph = traced(lambda: list(torch._foreach_norm([tensor], torch.inf)))
    before = str(graph.module.code)
    replay(graph, compiled=True)
    assert str(graph.module.code) == before
    assert "_foreach_norm" in before
