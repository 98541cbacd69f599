"""The states of methods, path by path."""

from __future__ import annotations

import torch
from metaweight.problems.recording.method_states import MethodStates

ONE, OTHER = ("one", "lower", "one"), ("other", "lower", "other")


def value(states: MethodStates, path: tuple[str, ...]) -> float:
    return float(states.of(path)["x"][0])


def proposed() -> MethodStates:
    states = MethodStates()
    for number, path in enumerate((ONE, OTHER)):
        states.propose(path, {"x": (torch.tensor(float(number)),), "steps": 3})
    return states


def test_a_step_settles_the_paths_of_its_upper_problem_alone() -> None:
    states = proposed()
    states.settle("one", taken=True)
    assert set(states.kept) == {ONE} and set(states.proposed) == {OTHER}
    states.settle("other", taken=False)
    assert states.of(OTHER) is None and value(states, ONE) == 0.0


def test_what_is_saved_and_converted_are_all_states_of_all_paths() -> None:
    states = proposed()
    states.settle("one", taken=True)
    for made in (
        MethodStates.from_state_dict(states.state_dict()),
        states.converted(lambda t: t.clone()),
    ):
        assert value(made, ONE) == 0.0 and value(made, OTHER) == 1.0
        assert set(made.kept) == {ONE} and set(made.proposed) == {OTHER}
        assert isinstance(made.of(ONE)["x"], tuple) and made.of(ONE)["steps"] == 3
    double = states.converted(lambda t: t.double())
    assert double.of(OTHER)["x"][0].dtype == torch.float64
    states.forget()
    assert not states.kept and not states.proposed


def test_a_state_has_no_graph() -> None:
    states, weight = MethodStates(), torch.ones(2, requires_grad=True)
    states.propose(ONE, {"x": [2 * weight]})
    assert not states.of(ONE)["x"][0].requires_grad
