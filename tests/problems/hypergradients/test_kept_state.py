"""A method of one's own that keeps a state: one for each path, replaced by accepted steps only."""

from __future__ import annotations

import warnings

import pytest
import torch
from metaweight.problems import lower_view
from support.quadratic import TARGET, flat
from support.stochastic_quadratic import MEAN, Gradients, Upper, kept, parameters, program

from metaweight import (
    CheckpointError,
    Hypergradient,
    HypergradientError,
    Product,
    Status,
    last_loss,
)
from metaweight.products import hessian_vector_product, mixed_vector_product


class Descended(Hypergradient):
    """One gradient step a product towards the solution of ``H x = v``, from the last step's."""

    keeps_state = True

    def vjp(self, lower, vector, upper_parameters):
        zero = [torch.zeros_like(v) for v in vector]
        solution = zero if lower.state is None else lower.state["solution"]
        loss = last_loss(lower)
        with lower.evaluation(second_order=True):
            curved = lower.mean(hessian_vector_product(loss, lower.weights, solution))
            mixed = mixed_vector_product(loss, lower.weights, upper_parameters, solution)
        following = [x - 0.9 * (h - v) for x, h, v in zip(solution, curved, vector, strict=True)]
        return Product([-t for t in mixed], Status("Descended"), {"solution": following})


UPPER = ("upper", "lower", "upper")
OTHER = ("other", "lower", "other")


def solution(engine, path=UPPER):
    return flat(kept(engine)[path]["solution"])


def by_hand(engine, number, target=TARGET):
    """The iterate after ``number`` steps from zero."""
    v, x = engine.lower.module().detach() - target, torch.zeros(6).double()
    for _ in range(number):
        x = x - 0.9 * (MEAN.hessian @ x - v)
    return x


def test_the_state_of_a_step_is_where_the_next_one_starts():
    seen = Gradients()
    engine = program(Descended(), iterations=3, hooks=[seen])
    engine.run()
    torch.testing.assert_close(solution(engine), by_hand(engine, 3))
    for number, gradient in enumerate(seen.seen["upper"]):
        torch.testing.assert_close(gradient, -MEAN.mixed.T @ by_hand(engine, number))


def test_every_upper_problem_has_a_state_of_its_own():
    engine = program(Descended(), iterations=3, uppers=("upper", "other"))
    engine.run()
    assert set(kept(engine)) == {UPPER, OTHER}
    torch.testing.assert_close(solution(engine), by_hand(engine, 3))
    torch.testing.assert_close(solution(engine, OTHER), by_hand(engine, 3, TARGET + 1))


class Spoilt(Upper):
    """Its loss is not a number in its second step."""

    def training_step(self, batch):
        loss = super().training_step(batch)
        return loss * torch.nan if self.count == 2 else loss


def test_a_step_that_is_skipped_leaves_the_state():
    engine = program(Descended(), iterations=4, upper=Spoilt, non_finite="skip")
    engine.run()
    torch.testing.assert_close(solution(engine), by_hand(engine, 3))


def test_a_step_that_fails_leaves_the_state():
    engine = program(Descended(), iterations=4, upper=Spoilt, non_finite="raise")
    with pytest.raises(Exception, match="not finite"):
        engine.run()
    torch.testing.assert_close(solution(engine), by_hand(engine, 1))
    assert not engine.lower.step_state.method_states.proposed


def test_micro_batches_of_a_step_follow_one_another():
    engine = program(Descended(), iterations=4, accumulation=2, noise=0.1)
    engine.global_step += 1
    engine.train_step()
    # The first micro-batch of the upper problem: nothing is accepted yet.
    assert not kept(engine)
    engine.run()
    steady = program(Descended(), iterations=4, noise=0.1)
    steady.run()
    torch.testing.assert_close(solution(engine), solution(steady), rtol=1e-12, atol=1e-12)


def test_a_check_takes_the_same_steps_as_a_run():
    """The references, in double precision, start from the same state and leave it."""
    checked, plain = (program(Descended(), noise=0.1, lr=0.1) for _ in range(2))
    for engine in (checked, plain):
        engine.run()
    (report,) = checked.check_hypergradient()
    assert report.converged.relative_error < 1e-12
    while plain.global_step < checked.global_step:
        plain.global_step += 1
        plain.train_step()
    assert torch.equal(solution(checked), solution(plain))
    assert torch.equal(parameters(checked), parameters(plain))


def test_a_check_of_single_precision_leaves_the_state_in_it():
    engine = program(Descended(), noise=0.1, lr=0.1, dtype=torch.float32)
    engine.run()
    (report,) = engine.check_hypergradient()
    assert report.converged.relative_error < 1e-4
    assert solution(engine).dtype == torch.float32


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_goes_on_from_the_saved_state(tmp_path, accumulation):
    def build(iterations):
        return program(
            Descended(), iterations=iterations, noise=0.1, lr=0.1, accumulation=accumulation
        )

    whole, first, resumed = build(9), build(5), build(9)
    whole.run()
    first.run()
    first.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    resumed.run()
    assert torch.equal(solution(resumed), solution(whole))
    assert torch.equal(parameters(resumed), parameters(whole))


def test_a_checkpoint_that_does_not_fit_leaves_the_state(tmp_path, monkeypatch):
    engine = program(Descended(), iterations=3)
    engine.run()
    engine.save(tmp_path / "state.pt")
    engine.train_iters = 4
    engine.run()

    def refuse(*arguments):
        raise ValueError("no such position")

    monkeypatch.setattr(engine.lower.source, "go_to", refuse)
    before = solution(engine)
    with pytest.raises(CheckpointError, match="no such position"):
        engine.load(tmp_path / "state.pt")
    assert torch.equal(solution(engine), before)


def test_another_module_has_no_state_yet():
    engine = program(Descended(), iterations=3)
    engine.run()
    engine.lower.set_module(engine.lower.module)
    assert not kept(engine)


def test_the_loss_scale_is_not_in_the_state():
    """A scale of 8, and half of it later: the vector that a method gets is without."""
    engine = program(Descended(), iterations=2)
    engine.upper.step_state.scale_losses_by(torch.amp.GradScaler("cpu", init_scale=8.0))
    engine.run()
    torch.testing.assert_close(solution(engine), by_hand(engine, 2))


def test_a_step_that_the_loss_scaler_refuses_leaves_the_state():
    """Nothing watches: the scaler alone finds that something has overflowed, here what the state
    was to be, and not the gradient."""
    engine = program(Descended(), iterations=4, upper=Spoilt)
    engine.upper.step_state.scale_losses_by(torch.amp.GradScaler("cpu", init_scale=8.0))
    engine.run()
    torch.testing.assert_close(solution(engine), by_hand(engine, 3))


class Undeclared(Descended):
    keeps_state = False


class Listed(Descended):
    def vjp(self, lower, vector, upper_parameters):
        return super().vjp(lower, vector, upper_parameters)._replace(state=[1])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Undeclared(), "Undeclared of problem 'lower' returned a state .* keeps_state=False; "),
        (Listed(), "Listed of problem 'lower' returned a state of type list .* return a dict"),
    ],
)
def test_states_are_declared_and_plain(method, message):
    with pytest.raises(HypergradientError, match=message):
        program(method, iterations=2).run()


def test_batches_of_ones_own():
    """Asked twice within one gradient they are the same, and not those of the step."""
    seen = []

    class Drawing(Descended):
        def vjp(self, lower, vector, upper_parameters):
            first, (again, other) = lower.draw(), lower.draw(2)
            assert again is first[0] and other is not again
            seen.append([step.batch[2] for step in (*lower.trajectory.window, again, other)])
            return super().vjp(lower, vector, upper_parameters)

    engine = program(Drawing(), iterations=4, noise=0.1)
    linear = [b[2] for b in engine.lower.train_data_loader[0]]
    engine.run()
    expected = [[linear[(3 * k + i) % 4] for i in range(3)] for k in range(4)]
    for found, numbers in zip(seen, expected, strict=True):
        assert all(map(torch.equal, found, numbers))
    assert engine.lower.epoch_counter == [2]
    assert not engine.lower.step_state.drawn


def test_outside_of_a_program_there_is_no_state():
    engine = program(Descended(), iterations=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.run()
    view = lower_view(engine.lower)
    assert view.state is None and view.path == ()
    assert lower_view(engine.lower, UPPER).as_given().state is not None
