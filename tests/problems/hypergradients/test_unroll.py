"""The unrolled hypergradient against a naive program that keeps everything in one graph.

Tolerance: relative 1e-9 in float64. Both are exact, so only rounding differs, and adaptive
optimizers divide it by small second moments.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.naive import relative_error
from support.unrolled import Setting, engine_gradient, naive_gradient
from support.zoo import over
from torch import nn

from metaweight import Config, ImplicitProblem, Unroll

SGD = {"lr": 0.1}
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
NESTEROV = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
DAMPENED = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}
ADAM = {"lr": 0.02}

CASES = {
    "sgd": Setting(settings=SGD),
    "momentum": Setting(settings=MOMENTUM),
    "momentum, from the first step": Setting(settings=MOMENTUM, earlier=0),
    "dampening": Setting(settings=DAMPENED),
    "dampening, from the first step": Setting(settings=DAMPENED, earlier=0),
    "nesterov and decay": Setting(settings=NESTEROV),
    "adam": Setting(torch.optim.Adam, ADAM),
    "adam, from the first step": Setting(torch.optim.Adam, ADAM, earlier=0),
    "adam, decay": Setting(torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1}),
    "amsgrad": Setting(torch.optim.Adam, {"lr": 0.02, "amsgrad": True}),
    "adamw": Setting(torch.optim.AdamW, ADAM),
    "rmsprop": Setting(torch.optim.RMSprop, {"lr": 0.01}),
    "rmsprop, all": Setting(
        torch.optim.RMSprop,
        {"lr": 0.01, "momentum": 0.8, "centered": True, "weight_decay": 0.05},
    ),
    "adagrad": Setting(torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.2}),
    "torch's own": Setting(torch.optim.NAdam, ADAM),
    "torch's own, from the first step": Setting(torch.optim.NAdam, ADAM, earlier=0),
    "scheduler": Setting(settings=MOMENTUM, scheduler=True),
    "clipping": Setting(settings=MOMENTUM, clipping=0.2),
    "clipping with adam": Setting(torch.optim.Adam, ADAM, clipping=0.2),
    "accumulation": Setting(settings=MOMENTUM, accumulation=3),
    "learned rate": Setting(settings=SGD, learned=("lr",)),
    "learned rate of adam": Setting(torch.optim.Adam, ADAM, learned=("lr",)),
    "all learned": Setting(settings=MOMENTUM, learned=("lr", "momentum", "weight_decay")),
    "all at once": Setting(
        settings=NESTEROV,
        scheduler=True,
        clipping=0.3,
        accumulation=2,
        learned=("momentum", "weight_decay"),
    ),
}


LONG = ("rmsprop, all", "all at once")


@pytest.mark.parametrize(
    ("case", "steps"),
    [
        pytest.param(case, steps, marks=[pytest.mark.slow] * (steps == 10 and case not in LONG))
        for case in CASES
        for steps in (1, 3, 10)
    ],
)
def test_equals_the_naive_program(case: str, steps: int) -> None:
    setting = Setting(**{**vars(CASES[case]), "steps": steps})
    expected = naive_gradient(setting)
    assert sum(float(t.norm()) for t in expected) > 1e-6
    # torch keeps NAdam's product of momenta in single precision.
    tolerance = 1e-6 if setting.optimizer is torch.optim.NAdam else 1e-9
    assert relative_error(engine_gradient(setting), expected) < tolerance


@pytest.mark.parametrize(
    "method",
    [Unroll(product="forward_over_reverse"), Unroll(memory="full")],
    ids=["forward over reverse", "kept graphs"],
)
@pytest.mark.parametrize("case", ["all at once", "adam", "learned rate"])
def test_other_exact_products_equal_it_too(case: str, method: Unroll) -> None:
    setting = CASES[case]
    assert relative_error(engine_gradient(setting, method), naive_gradient(setting)) < 1e-9


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_truncation_goes_back_through_the_last_steps(steps: int) -> None:
    setting = Setting(settings=MOMENTUM, steps=4)
    actual = engine_gradient(setting, Unroll(steps=steps))
    assert relative_error(actual, naive_gradient(setting, through=steps)) < 1e-9


class Judge(ImplicitProblem):
    def training_step(self, batch):
        return (self.trained(batch) - 1).square().mean()


class Trained(ImplicitProblem):
    def training_step(self, batch):
        return (self.module(batch) - self.judge(batch)).square().mean()


def recorded_numbers(
    optimizer: type[torch.optim.Optimizer], method: Unroll, **config: float
) -> int:
    """Numbers held per weight and step of what was recorded of the optimizer."""
    torch.default_generator.manual_seed(0)
    above, net = nn.Linear(2, 50), nn.Linear(2, 50)
    judge = Judge(
        "judge",
        module=above,
        optimizer=torch.optim.SGD(above.parameters(), lr=0.1),
        train_data_loader=[torch.ones(4, 2)],
    )
    trained = Trained(
        "trained",
        Config(type=method, unroll_steps=3, **config),
        module=net,
        optimizer=optimizer(net.parameters(), lr=0.1),
        train_data_loader=[torch.ones(4, 2)],
    )
    engine = over(judge, trained, train_iters=6)
    engine.run()
    moments = [update.moment for update in engine.trained.step_state.trajectory.updates]
    entries = [t for m in moments for s in (m.gradients, *m.states.values()) for t in s.values()]
    held = [t.untyped_storage().nbytes() for t in entries if t.numel() == net.weight.numel()]
    return sum(held) // (4 * net.weight.numel() * len(moments))


def test_keeps_of_the_optimizer_only_what_its_adjoint_reads() -> None:
    """SGD is linear: gradient and momentum do not enter. Adam's gradient and two moments do."""
    heavy = partial(torch.optim.SGD, momentum=0.9)
    assert recorded_numbers(heavy, Unroll()) == 0
    assert recorded_numbers(heavy, Unroll(), gradient_clipping=1.0) == 2
    assert recorded_numbers(heavy, Unroll(product="one_sided")) == 2
    assert recorded_numbers(torch.optim.Adam, Unroll()) == 3
