"""SABA: its table, what it needs of loaders, and the variance that it takes away."""

from __future__ import annotations

import pytest
import torch
from metaweight.engines.checkpoint.hook import load_state
from metaweight.engines.checkpoint.state import engine_to_plain
from metaweight.problems.step.batch_numbers import batch_number, require_batch_numbers
from support.quadratic import TARGET, error
from support.stochastic_quadratic import (
    MEAN,
    Gradients,
    Numbered,
    Replacing,
    Upper,
    batches,
    draws,
    kept,
    parameters,
    program,
)
from torch.utils.data import DataLoader, TensorDataset

from metaweight import SABA, SOBA, ConfigurationError
from metaweight.data import SampleLoader, TensorLoader


def ran(method, **settings):
    seen = Gradients()
    engine = program(method, hooks=[seen], **settings)
    engine.run()
    return engine, seen.seen


def v_of(engine, target=TARGET):
    return engine.lower.module().detach() - target


def test_comes_to_the_closed_form_also_of_different_batches():
    """Where SOBA is left with the noise of its batches, at a step size that is as long."""
    for noise in (0.0, 0.1):
        engine, seen = ran(SABA(lr=0.3), iterations=150, noise=noise)
        exact = MEAN.product(v_of(engine))
        assert error(seen["upper"][-1], exact) < 1e-6
    _, noisy = ran(SOBA(lr=0.3), iterations=40, noise=0.1)
    assert min(error(g, exact) for g in noisy["upper"][-4:]) > 1e-3


def test_step_by_step():
    """``q_i - table_i + mean`` in place of each quantity, the mean over what the table has."""
    engine, seen = ran(SABA(lr=0.5, damping=0.2), iterations=10, noise=0.1)
    data, shifts = batches(0.1), draws(7, (6,), 0.1, 0, 1)
    tables, x = ({}, {}, {}), None

    def corrected(table, number, new):
        mean = torch.stack(list(table.values())).mean(0) if table else 0.0
        found = new - table[number] + mean if number in table else new
        table[number] = new
        return found

    for k, gradient in enumerate(seen["upper"]):
        hessian, mixed, _ = data[k % 4]
        v = v_of(engine) - shifts[k % 4]
        x = 0.5 * v if x is None else x
        curved = corrected(tables[0], k % 4, hessian @ x + 0.2 * x)
        product = corrected(tables[1], k % 4, -mixed.T @ x)
        v = corrected(tables[2], k % 4, v)
        torch.testing.assert_close(gradient, product)
        x = x - 0.5 * (curved - v)


def test_each_upper_problem_has_tables_of_its_own():
    engine, seen = ran(SABA(lr=0.3), iterations=150, uppers=("upper", "other"))
    for name, target in (("upper", TARGET), ("other", TARGET + 1)):
        assert error(seen[name][-1], MEAN.product(v_of(engine, target))) < 1e-6
    assert len(kept(engine)) == 2


NOISY = {"noise": 0.1, "lr": 0.05}


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, every):
    """Also inside a loop, whose recorded step has its number in the checkpoint."""

    def build(iterations):
        return program(SABA(), iterations=iterations, every=every, **NOISY)

    whole, first, resumed = build(20), build(10), build(20)
    whole.run()
    first.run()
    first.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    resumed.run()
    assert torch.equal(parameters(resumed), parameters(whole))


class Spoilt(Upper):
    """Its loss is not a number in its eighth step."""

    def training_step(self, batch):
        loss = super().training_step(batch)
        return loss * torch.nan if self.count == 8 else loss


def test_a_step_that_is_skipped_leaves_the_table():
    spoilt, _ = ran(SABA(), iterations=8, upper=Spoilt, non_finite="skip")
    plain, _ = ran(SABA(), iterations=7)
    torch.testing.assert_close(kept(spoilt), kept(plain), rtol=0, atol=0)


def test_a_loader_can_say_which_batch_it_gave():
    data = batches(0.1)
    engine, seen = ran(SABA(lr=0.3), iterations=150, noise=0.1, lower_loader=Numbered(data))
    assert error(seen["upper"][-1], MEAN.product(v_of(engine))) < 1e-6
    entries = kept(engine)["upper", "lower", "upper"]["lower"]["entries"]
    assert set(entries) == {"0", "1", "2", "3"}


ROWS = torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
TENSORS = TensorDataset(ROWS, torch.arange(6))
LOADERS = {
    "list": (list(ROWS), 6),
    "torch": (DataLoader(TENSORS, 2), 3),
    "tensors": (TensorLoader(TENSORS, 2, shuffle=False), 3),
    "samples": (SampleLoader(TENSORS, 2, shuffle=False), 3),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_have_the_numbers_of_their_places(kind):
    loader, length = LOADERS[kind]
    problem = program(SABA(), upper_loader=loader).upper
    require_batch_numbers(problem, "SABA", "use SOBA()")
    found = []
    for _ in range(2 * length):
        problem.get_batch()
        found.append(batch_number(problem).number)
    assert found == [*range(length)] * 2


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(TENSORS, 2, shuffle=True), "'upper' has a loader of type DataLoader that"),
        (TensorLoader(TENSORS, 2), "'upper' has a loader of type TensorLoader that"),
        (SampleLoader(TENSORS, 2), "'upper' has a loader of type SampleLoader that"),
        (([1], [2]), "'upper' has 2 loaders"),
    ],
)
def test_loaders_that_do_not_say_which_batch_they_give_are_refused(loader, message):
    with pytest.raises(ConfigurationError, match=f"SABA keeps a table.*{message}.*use SOBA"):
        program(SABA(), upper_loader=loader)


def test_another_loader_starts_another_table(tmp_path):
    """Also where a run was saved between the two."""
    data = batches(0.1)
    replacing = Replacing("lower", data[:2], 5)
    engine = ran_with(replacing, iterations=7)
    tables = kept(engine)["upper", "lower", "upper"]
    assert set(tables["lower"]["entries"]) == {"0", "1"}
    assert set(tables["upper"]["entries"]) == {"0", "1", "2", "3"}
    first, resumed = (program(SABA(), iterations=n, hooks=[replacing], **NOISY) for n in (5, 7))
    first.run()
    first.save(tmp_path / "state.pt")
    resumed.lower.set_train_data_loader(data[:2])
    resumed.load(tmp_path / "state.pt")
    resumed.run()
    assert torch.equal(parameters(resumed), parameters(engine))


def test_another_number_of_processes_starts_another_table(tmp_path):
    """Whose batches are others together."""
    first, resumed = (program(SABA(), iterations=n, **NOISY) for n in (6, 8))
    first.run()
    state, _ = engine_to_plain(first)
    load_state(resumed, tmp_path, {**state, "other processes": [{}]})
    resumed.run()
    tables = kept(resumed)["upper", "lower", "upper"]
    assert {len(tables[name]["entries"]) for name in ("lower", "upper")} == {2}


def ran_with(hook, **settings):
    engine = program(SABA(), hooks=[hook], **NOISY, **settings)
    engine.run()
    return engine


def test_a_shuffling_loader_is_refused_during_a_run_too():
    loader = DataLoader([torch.zeros(6).double()] * 4, batch_size=None, shuffle=True)
    with pytest.raises(ConfigurationError, match="'upper' has a loader of type DataLoader that"):
        ran_with(Replacing("upper", loader, 5), iterations=7)


def test_accumulation_is_refused():
    with pytest.raises(ConfigurationError, match="'upper' accumulates 2 micro-batches"):
        program(SABA(), accumulation=2)


class OwnBatches(Upper):
    def get_batch(self):
        return torch.zeros(6).double()


def test_batches_of_a_method_are_refused():
    with pytest.raises(ConfigurationError, match="'upper' draws its batches by a get_batch"):
        program(SABA(), upper=OwnBatches)
