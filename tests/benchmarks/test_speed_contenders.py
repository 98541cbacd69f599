"""Contenders of one workload that say they compute the same do.

In float64, so that the tolerance of 1e-9 (relative, on the change of all upper or lower parameters
over two steps) leaves room for rounding alone. What differs by design is compared at the accuracy
of its differences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("benchmark_modules"),
]

ROUNDING = 1e-9
LR = 0.1


def small_net() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))


def plain_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """An upper optimizer whose change is the hypergradient itself."""
    return torch.optim.SGD(parameters, lr=1.0)


def task(name: str) -> Any:
    """A small task, in float64 and without momentum, which the official look ahead leaves out."""
    from speed_mlp import mlp_task
    from speed_official import resnet32_task
    from speed_transformer import transformer_task

    dtype = torch.float64
    makes: dict[str, Callable[[], Any]] = {
        "mlp": partial(mlp_task, 8, 6, 20, dtype=dtype),
        "unroll": partial(mlp_task, 8, 6, 20, steps=3, dtype=dtype),
        "transformer": partial(transformer_task, 4, 6, 20, 8, 2, 2, dtype=dtype),
        "resnet32": partial(resnet32_task, 6, small_net, dtype),
    }
    return replace(makes[name](), sgd={"lr": LR}, upper_optimizer=plain_sgd)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1).clone() for p in module.parameters()])


def change(given: Any, contender: str, steps: int = 2) -> tuple[Tensor, Tensor] | None:
    """How upper and lower parameters move in so many steps; none without the peer."""
    from speed_contenders import bilevel_contenders

    made: list[tuple[nn.Module, nn.Module]] = []

    def modules() -> tuple[nn.Module, nn.Module]:
        made.append(given.modules())
        return made[-1]

    found = bilevel_contenders(lambda: replace(given, modules=modules), [contender])
    if not found:
        return None
    step = found[contender]()
    net, weights = made[-1]
    start = flat(weights), flat(net)
    for _ in range(steps):
        step()
    return start[0] - flat(weights), start[1] - flat(net)


def error(found: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def assert_all_agree(given: Any, names: Iterable[str], *, lower: bool = True) -> None:
    changes = {name: change(given, name) for name in names}
    (first, expected), *others = [(n, c) for n, c in changes.items() if c is not None]
    for name, found in others:
        assert error(found[0], expected[0]) < ROUNDING, f"{name}, {first}: upper"
        if lower:
            assert error(found[1], expected[1]) < ROUNDING, f"{name}, {first}: lower"


@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet32", "unroll"])
def test_exact_derivatives_that_keep_the_step_agree(name: str) -> None:
    from speed_contenders import EXACT, FULL, HIGHER_KEPT, TORCHOPT_KEPT

    assert_all_agree(task(name), [EXACT, FULL, HIGHER_KEPT, TORCHOPT_KEPT])


@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet32"])
def test_exact_derivatives_that_take_the_step_again_agree(name: str) -> None:
    from speed_contenders import EXACT_AGAIN, HIGHER, OFFICIAL, TORCHOPT

    assert_all_agree(task(name), [OFFICIAL, EXACT_AGAIN, HIGHER, TORCHOPT])


def test_momentum_is_carried_on_alike() -> None:
    from speed_contenders import EXACT, EXACT_AGAIN, HIGHER, HIGHER_KEPT, TORCHOPT, TORCHOPT_KEPT

    given = replace(task("mlp"), sgd={"lr": LR, "momentum": 0.9, "weight_decay": 5e-4})
    assert_all_agree(given, [EXACT, HIGHER_KEPT, TORCHOPT_KEPT])
    assert_all_agree(given, [EXACT_AGAIN, HIGHER, TORCHOPT])


@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet32"])
def test_exact_derivatives_of_the_first_step_are_those_of_the_official_algorithm(
    name: str,
) -> None:
    from speed_contenders import EXACT, OFFICIAL, ONE_SIDED

    given = task(name)
    official = change(given, OFFICIAL, 1)
    exact, one_sided = change(given, EXACT, 1), change(given, ONE_SIDED, 1)
    assert official is not None and exact is not None and one_sided is not None
    assert error(exact[0], official[0]) < ROUNDING
    # Without the learning rate, and by a difference of length 3e-4.
    assert error(LR * one_sided[0], official[0]) < 1e-2


@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet32"])
def test_native_derivatives_after_the_step_agree(name: str) -> None:
    from speed_contenders import FORWARD, NATIVE, PROGRAM

    given = task(name)
    central, forward = change(given, NATIVE, 1), change(given, FORWARD, 1)
    assert central is not None and forward is not None
    # A central difference of length 1e-2 has an error of order 1e-4.
    assert error(central[0], forward[0]) < 1e-3
    program = change(given, PROGRAM, 1)
    assert program is not None
    if name == "mlp":
        # Its weights look at no losses, so that there is nothing a difference would move with it.
        assert error(program[0], central[0]) < ROUNDING


@pytest.mark.parametrize("name", ["mlp", "transformer", "unroll"])
def test_native_steps_by_hand_are_ours(name: str) -> None:
    """Their differences are rounded otherwise, by 1e-16 over the displacement of 0.01."""
    from speed_contenders import BY_HAND, NATIVE

    assert_all_agree(task(name), [NATIVE, BY_HAND])


@pytest.mark.skipif(not importlib.util.find_spec("betty"), reason="needs betty-ml")
@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet32", "unroll"])
def test_the_program_computes_on_metaweight_what_it_does_on_betty(name: str) -> None:
    from speed_contenders import BETTY, PROGRAM

    given = task(name)
    # Betty has upper batches move running statistics, which do not enter a loss in training.
    assert_all_agree(given, [PROGRAM, BETTY])


def test_the_task_of_resnet32_starts_where_its_workload_does() -> None:
    import speed_resnet32
    from speed_official import resnet32_task

    theirs, ours = speed_resnet32.parts(), resnet32_task(2).parts()
    for position in (0, 1):
        assert torch.equal(flat(theirs[position]), flat(ours[position]))
    for position in (2, 3):
        settings = [{**p[position].param_groups[0], "params": None} for p in (theirs, ours)]
        assert settings[0] == settings[1]
        assert type(theirs[position]) is type(ours[position])


def test_unrolled_differences_are_close_to_the_exact_derivative() -> None:
    from speed_contenders import EXACT, UNROLLED_ONE_SIDED

    given = task("unroll")
    exact, one_sided = change(given, EXACT, 3), change(given, UNROLLED_ONE_SIDED, 3)
    assert exact is not None and one_sided is not None
    # A one-sided difference of length 3e-4.
    assert error(one_sided[0], exact[0]) < 1e-2


def level_changes(contender: str, levels: int, monkeypatch: Any) -> Iterator[Tensor]:
    import speed_three_level

    made: list[Any] = []

    class Watched(speed_three_level.Levels):
        def modules(self) -> Any:
            made.append(super().modules())
            return made[-1]

    monkeypatch.setattr(speed_three_level, "Levels", Watched)
    sizes: dict[str, Any] = {"levels": levels, "batch": 8, "width": 6, "dtype": torch.float64}
    found = speed_three_level.three_level_contenders(
        [contender], upper_optimizer=plain_sgd, **sizes
    )
    if not found:
        pytest.skip(f"needs {contender}")
    step = found[contender]()
    monkeypatch.undo()
    trained = [*made[-1].networks, made[-1].weights]
    start = [flat(module) for module in trained]
    for _ in range(3):
        step()
    yield from (before - flat(module) for before, module in zip(start, trained, strict=True))


@pytest.mark.parametrize(
    ("contender", "levels"),
    [
        *(("hand-written", levels) for levels in (2, 3, 6)),
        *(("betty-ml", levels) for levels in (1, 2, 3, 6)),
    ],
)
def test_levels_are_the_same_by_hand_on_betty_and_on_metaweight(
    contender: str, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = level_changes(contender, levels, monkeypatch)
    expected = level_changes("metaweight", levels, monkeypatch)
    moved = 0
    for theirs, ours in zip(found, expected, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=ROUNDING * float(ours.norm()))
        moved += bool(ours.norm() > 0)
    assert moved == levels


@pytest.mark.parametrize(("contender", "number"), [("hand-written", 3), ("betty-ml", 3)])
def test_many_lower_problems_are_the_same_by_hand_on_betty_and_on_metaweight(
    contender: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import speed_lowers

    made: list[Any] = []

    class Watched(speed_lowers.Levels):
        def modules(self) -> Any:
            made.append(super().modules())
            return made[-1]

    monkeypatch.setattr(speed_lowers, "Levels", Watched)
    program = {"number": number, "batch": 8, "width": 6, "dtype": torch.float64}
    moved = []
    for name in (contender, "metaweight"):
        found = speed_lowers.lowers_contenders(upper_optimizer=plain_sgd, **program)
        if name not in found:
            pytest.skip(f"needs {name}")
        step = found[name]()
        networks, weights = made[-1]
        trained = [*networks, weights]
        start = [flat(module) for module in trained]
        for _ in range(3):
            step()
        moved.append([b - flat(module) for b, module in zip(start, trained, strict=True)])
    for theirs, ours in zip(*moved, strict=True):
        assert ours.norm() > 0
        torch.testing.assert_close(theirs, ours, rtol=0, atol=ROUNDING * float(ours.norm()))


def test_mean_teachers_are_the_same_by_hand_and_on_metaweight() -> None:
    from speed_mean_teacher import mean_teacher_contenders

    results = {}
    nets: list[nn.Module] = []

    def network() -> nn.Module:
        nets.append(small_net())
        return nets[-1]

    makes = mean_teacher_contenders(batch=4, side=16, network=network, dtype=torch.float64)
    for name, make in makes.items():
        step = make()
        net = nets[-1]
        start = flat(net)
        for _ in range(4):
            step()
        buffers = [b.double().reshape(-1) for b in net.buffers()]
        results[name] = torch.cat([start - flat(net), *buffers])
    expected = results.pop("hand-written")
    supervised = results.pop("supervised step")
    assert error(supervised, expected) > 1e-3
    for name, found in results.items():
        assert error(found, expected) < ROUNDING, name
