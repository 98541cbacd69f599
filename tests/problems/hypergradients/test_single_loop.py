"""Methods that go on from the last solution of their linear system, against closed forms."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from support.quadratic import TARGET, error, flat, spread, with_eigenvalues
from support.stochastic_quadratic import (
    MEAN,
    Gradients,
    Upper,
    batches,
    draws,
    kept,
    parameters,
    program,
)

from metaweight import (
    MASOBA,
    SOBA,
    AmIGO,
    Config,
    ConfigurationError,
    ConjugateGradient,
    Engine,
    EngineConfig,
    HypergradientError,
    Neumann,
    SampledLayers,
    StocBiO,
)

WARM = {
    "soba": SOBA(lr=0.9),
    "soba, fresh": SOBA(lr=0.9, batches="fresh"),
    "soba, damped": SOBA(lr=0.9, damping=0.3),
    "masoba": MASOBA(lr=0.9, momentum=0.5),
    "amigo": AmIGO(lr=0.9, iterations=3),
    "amigo, recorded": AmIGO(lr=0.9, iterations=3, batches="recorded"),
    "neumann, warm": Neumann(iterations=1, alpha=0.9, warm=True),
    "neumann, warm and fresh": Neumann(iterations=1, alpha=0.9, warm=True, batches="fresh"),
    "cg, warm": ConjugateGradient(iterations=1, warm=True),
    "cg, warm and fresh": ConjugateGradient(iterations=1, warm=True, batches="fresh"),
}
COLD = {
    "stocbio": StocBiO(iterations=30, alpha=0.9),
    "neumann, fresh": Neumann(iterations=30, alpha=0.9, batches="fresh"),
    "cg, fresh": ConjugateGradient(iterations=6, batches="fresh"),
}
ALL = WARM | COLD
# What each keeps and draws; the rest differs from one of these by a setting.
AT_ONCE = {name: WARM[name] for name in ("masoba", "amigo", "neumann, warm and fresh", "cg, warm")}


def each(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods)


def ran(method, **settings):
    """The engine after a run, and the gradients of the upper problems."""
    seen = Gradients()
    engine = program(method, hooks=[seen], **settings)
    engine.run()
    return engine, seen.seen


def v_of(engine, target=TARGET):
    return engine.lower.module().detach() - target


@each(ALL)
def test_comes_to_the_closed_form(method):
    """30 steps of a system whose eigenvalues lie between 0.5 and 1."""
    engine, seen = ran(method, iterations=30)
    exact = MEAN.product(v_of(engine), getattr(method, "damping", 0.0))
    assert error(seen["upper"][-1], exact) < 1e-6
    if method in WARM.values():
        assert error(seen["upper"][0], exact) > 1e-4


@each(WARM)
def test_has_a_solution_for_each_upper_problem(method):
    engine, seen = ran(method, iterations=30, uppers=("upper", "other"))
    for name, target in (("upper", TARGET), ("other", TARGET + 1)):
        exact = MEAN.product(v_of(engine, target), getattr(method, "damping", 0.0))
        assert error(seen[name][-1], exact) < 1e-6
    assert len(kept(engine)) == 2


NOISY = {"noise": 0.1, "lr": 0.05}


def test_soba_step_by_step():
    """``x ← x - lr (A_i x - v_i)`` from ``lr v_0``, each product taken before the step."""
    engine, seen = ran(SOBA(lr=0.9), iterations=6, noise=0.1)
    data, shifts, x = batches(0.1), draws(7, (6,), 0.1, 0, 1), None
    for k, gradient in enumerate(seen["upper"]):
        hessian, mixed, _ = data[k % 4]
        v = v_of(engine) - shifts[k % 4]
        x = 0.9 * v if x is None else x
        torch.testing.assert_close(gradient, -mixed.T @ x)
        x = x - 0.9 * (hessian @ x - v)


def test_masoba_averages_the_products_of_soba():
    _, plain = ran(SOBA(lr=0.9), iterations=6, noise=0.1)
    _, averaged = ran(MASOBA(lr=0.9, momentum=0.8), iterations=6, noise=0.1)
    h = plain["upper"][0]
    for product, found in zip(plain["upper"], averaged["upper"], strict=True):
        h = 0.8 * h + 0.2 * product
        torch.testing.assert_close(found, h)


def test_amigo_takes_another_batch_for_each_step_and_for_the_product():
    engine, _ = ran(AmIGO(lr=0.9, iterations=2), iterations=1, noise=0.1)
    data, v = batches(0.1), v_of(engine) - draws(7, (6,), 0.1, 0, 1)[0]
    x = 0.9 * v
    for hessian, _, _ in data[1:3]:
        x = x - 0.9 * (hessian @ x - v)
    torch.testing.assert_close(flat(kept(engine)["upper", "lower", "upper"]["solution"]), x)
    assert engine.lower.epoch_counter == [0]


def test_stocbio_is_a_series_of_different_batches():
    engine, seen = ran(StocBiO(iterations=2, alpha=0.9, damping=0.1), iterations=1, noise=0.1)
    data, v = batches(0.1), v_of(engine) - draws(7, (6,), 0.1, 0, 1)[0]
    term, total = v, v
    for hessian, _, _ in data[1:3]:
        term = term - 0.9 * (hessian @ term + 0.1 * term)
        total = total + term
    torch.testing.assert_close(seen["upper"][0], -data[3][1].T @ (0.9 * total))


def test_warm_series_and_directions_start_where_the_last_ended():
    """Two steps of one term each are one of three, from zero."""
    _, warm = ran(Neumann(iterations=1, alpha=0.9, warm=True), iterations=2)
    _, cold = ran(Neumann(iterations=3, alpha=0.9), iterations=1)
    torch.testing.assert_close(warm["upper"][1], cold["upper"][0])
    _, warm = ran(ConjugateGradient(iterations=2, warm=True), iterations=1)
    _, cold = ran(ConjugateGradient(iterations=2), iterations=1)
    torch.testing.assert_close(warm["upper"][0], cold["upper"][0])


def test_a_kept_solution_has_less_bias_than_that_of_one_batch():
    """The mean over an epoch of ``A_i⁻¹ v`` is not ``A⁻¹ v``; that of ``x`` nearly is."""

    def bias(method):
        engine, seen = ran(method, iterations=60, noise=0.25)
        mean = torch.stack(seen["upper"][-4:]).mean(0)
        return error(mean, MEAN.product(v_of(engine)))

    cold, kept_one = bias(ConjugateGradient(iterations=6)), bias(SOBA(lr=0.1))
    assert kept_one < 0.5 * cold


@each(AT_ONCE)
def test_a_resumed_run_is_the_same_to_the_bit(method, tmp_path):
    def build(iterations):
        return program(method, iterations=iterations, uppers=("upper", "other"), **NOISY)

    whole, first, resumed = build(7), build(3), build(7)
    whole.run()
    first.run()
    first.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    resumed.run()
    assert torch.equal(parameters(resumed), parameters(whole))


class Spoilt(Upper):
    """Its loss is not a number in its fifth step."""

    def training_step(self, batch):
        loss = super().training_step(batch)
        return loss * torch.nan if self.count == 5 else loss


@each(AT_ONCE)
def test_a_step_that_is_skipped_leaves_the_solution(method):
    spoilt, _ = ran(method, iterations=8, upper=Spoilt, non_finite="skip")
    plain, _ = ran(method, iterations=7)
    torch.testing.assert_close(kept(spoilt), kept(plain), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (SOBA(lr=6.0), "lr"),
        (MASOBA(lr=6.0), "lr"),
        (AmIGO(lr=6.0), "lr"),
        (StocBiO(alpha=6.0), "alpha"),
        (Neumann(iterations=10, alpha=6.0), "alpha"),
        (Neumann(iterations=1, alpha=6.0, warm=True), "alpha"),
        (Neumann(iterations=200, alpha=600.0), "alpha"),
    ],
)
def test_a_step_size_that_diverges_is_told_the_largest_that_does_not(method, setting):
    """The largest eigenvalue is 1: the bound is 2, and what is advised a little below."""
    message = rf"{type(method).__name__}.*problem 'lower'.*choose {setting} .*at most ([\d.]+\d)"
    with pytest.raises(HypergradientError, match=message) as caught:
        program(method, iterations=20).run()
    advised = float(re.search(message, str(caught.value)).group(1))
    assert 1.8 < advised < 2.0
    engine, _ = ran(replace(method, **{setting: advised}), iterations=10)
    assert float(engine.lower.hypergradient_status.residual) < 1.0


def test_a_hessian_that_curves_downwards_is_told_how_much_to_damp():
    bent = with_eigenvalues(torch.cat([-torch.tensor([0.5]).double(), spread(5, 0.5)]), inputs=3)
    data = [(bent.hessian, bent.mixed, bent.linear)]
    for method in (
        SOBA(lr=0.9),
        Neumann(iterations=20, alpha=0.9),
        ConjugateGradient(iterations=6),
    ):
        with pytest.raises(HypergradientError, match=r"raise damping above ([\d.]+\d)") as caught:
            program(method, iterations=20, lower_loader=data).run()
        advised = float(re.search(r"damping above ([\d.]+\d)", str(caught.value)).group(1))
        assert 0.5 < advised < 1.0
        engine, _ = ran(replace(method, damping=advised), iterations=10, lower_loader=data)
        assert float(engine.lower.hypergradient_status.residual) < 1.0


def test_other_parameters_in_every_step_are_refused():
    engine = program(ConjugateGradient(iterations=1), iterations=1)
    for method in WARM.values():
        config = Config(type=method, hypergradient_parameters=SampledLayers(1))
        with pytest.raises(ConfigurationError, match="selects other parameters in every step"):
            rebuilt(engine, config)


def rebuilt(engine, config):
    """The program again, with other settings of its lower problem."""
    lower, upper = engine.lower, engine.upper
    again = type(lower)(
        "lower",
        config,
        lower.module,
        lower.optimizer,
        train_data_loader=[0],
        extra_config=lower.cfg,
    )
    above = Upper("upper", None, upper.module, upper.optimizer, train_data_loader=[0])
    Engine([above, again], EngineConfig(), {"u2l": {above: [again]}, "l2u": {again: [above]}})
