"""Parts of a network that are in evaluation mode stay in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import difference, everything, two_levels
from support.small import Chase, numbers, problem, single
from torch import nn

from metaweight import Engine, Hook


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.body = nn.Sequential(nn.BatchNorm1d(1), nn.Sequential(nn.Dropout(), nn.Dropout()))
        self.calls: list[bool] = []

    def forward(self) -> torch.Tensor:
        return self.w

    def train(self, mode: bool = True) -> Net:
        self.calls.append(mode)
        super().train(mode)
        return self


def modes(net: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in net.named_modules()}


class Validating(Engine):
    def validation(self) -> dict[str, Any]:
        assert not any(modes(self.chase.module).values())
        # What a validation does with the modes is undone.
        self.chase.module.train()
        return {}


@pytest.mark.parametrize("frozen", [("body.0",), ("body",), ("body.1.0",), ()])
def test_each_part_has_its_own_mode_at_the_start_and_after_validation(
    frozen: tuple[str, ...],
) -> None:
    net, seen = Net(), []
    for name in frozen:
        net.get_submodule(name).eval()
    if frozen == ("body",):
        net.body[1].train()
    expected = modes(net)

    class Noting(Chase):
        def training_step(self, batch: Any) -> Any:
            seen.append(modes(self.module))
            return super().training_step(batch)

    engine = single(problem(Noting, module=net), engine=Validating, steps=3, valid_step=1)
    engine.run()
    engine.run()
    assert seen == [expected] * 6
    engine.eval()
    engine.eval()
    assert not any(modes(net).values())
    engine.train()
    assert modes(net) == expected


def test_a_network_in_evaluation_mode_as_a_whole_is_trained() -> None:
    net = Net().eval()
    engine = single(problem(module=net))
    engine.run()
    assert all(modes(net).values())
    # Its own train() was called, which may do more than set the modes.
    assert net.calls[:2] == [False, True]


def test_a_network_whose_own_train_freezes_parts_has_them_frozen_from_the_first_step() -> None:
    class Freezes(Net):
        def train(self, mode: bool = True) -> Net:
            super().train(mode)
            self.body[0].eval()
            return self

    net, seen = Freezes(), []
    net.body[1][1].eval()
    assert net.body[0].training

    class Noting(Chase):
        def training_step(self, batch: Any) -> Any:
            seen.append(modes(self.module))
            return super().training_step(batch)

    engine = single(problem(Noting, module=net), engine=Validating, steps=3, valid_step=1)
    engine.run()
    expected = {name: name not in ("body.0", "body.1.1") for name in modes(net)}
    assert seen == [expected] * 3


def test_a_part_of_two_problems_keeps_its_mode() -> None:
    shared = nn.BatchNorm1d(1)
    nets = [Net(), Net()]
    for net in nets:
        net.body[0] = shared
    nets[1].body[1].eval()
    expected = [modes(net) for net in nets]
    engine = Engine([problem(name=n, module=net) for n, net in zip("ab", nets, strict=True)])
    engine.eval()
    engine.train()
    assert [modes(net) for net in nets] == expected


class Freezing(Hook):
    """Freezes the first layer and the batch norm after two steps."""

    def iteration_end(self, engine: Engine) -> None:
        net = engine.lower.module
        if engine.global_step == 2:
            net[0].requires_grad_(False)
            net[1].eval()
        if engine.global_step == 5:
            net[0].bias.requires_grad_(True)


@pytest.mark.parametrize("step", [2, 3, 6])
def test_what_is_frozen_during_a_run_is_frozen_after_resuming(step: int, tmp_path: Path) -> None:
    build = two_levels(hooks=lambda: [Freezing()], logger_type="none", valid_step=1)
    torch.default_generator.manual_seed(0)
    whole = build(checkpoint_dir=tmp_path, checkpoint_step=1, keep_last=None)
    whole.run()
    resumed = build()
    resumed.run(resume=tmp_path / f"step-{step:010d}.ckpt")
    assert not difference(everything(whole), everything(resumed))
    assert modes(resumed.lower.module) == modes(whole.lower.module)
    assert not resumed.lower.module[0].weight.requires_grad
    # And going back thaws it.
    whole.load(tmp_path / "step-0000000001.ckpt")
    assert all(modes(whole.lower.module).values())
    assert all(p.requires_grad for p in whole.lower.module.parameters())


def test_a_state_saved_in_a_validation_has_the_modes_of_training(tmp_path: Path) -> None:
    class Saving(Engine):
        def validation(self) -> dict[str, Any]:
            self.save(tmp_path / "a.ckpt")
            return {}

    def build(frozen: bool) -> Engine:
        net = Net()
        net.body[0].train(not frozen)
        return single(problem(module=net, data=numbers(1.0)), engine=Saving, valid_step=1)

    build(True).run()
    engine = build(False)
    engine.load(tmp_path / "a.ckpt")
    found = modes(engine.chase.module)
    assert [name for name, training in found.items() if not training] == ["body.0"]
