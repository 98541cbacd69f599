"""Checkpoints of adapters: small, resumed to the bit, and only on the network they belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.checkpoint.file import read_checkpoint
from support.language import TinyLM, padded_batch
from support.lora import adapted
from torch import Tensor, nn

from metaweight import CheckpointError, Config, Engine, EngineConfig, Hook, Unroll
from metaweight.lm import CleanLM, Sources, WeightedLM

Make = Callable[[], nn.Module]


def network(base: int = 0, width: int = 32) -> nn.Module:
    """A language model with batch norm, of which adapters are trained alone."""
    torch.manual_seed(base)
    net = TinyLM(width, dropout=0.2)
    torch.manual_seed(9)
    net = adapted(net, "mix")
    net.norm = nn.BatchNorm1d(width)
    net.norm.requires_grad_(False)
    net.mix.register_forward_hook(lambda module, args, out: net.norm(out.mT).mT)
    return net


def program(
    folder: Path | None,
    steps: int,
    make: Make = network,
    hooks: tuple[Hook, ...] = (),
    **settings: Any,
) -> Engine:
    torch.manual_seed(1)
    net, sources = make(), Sources(3)
    own = [p for p in net.parameters() if p.requires_grad]
    lm = WeightedLM(
        "lm",
        Config(type=Unroll(), unroll_steps=3),
        weights="mixture",
        module=net,
        optimizer=torch.optim.AdamW(own, 1e-2),
        train_data_loader=[padded_batch(i) for i in range(5)],
    )
    mixture = CleanLM(
        "mixture",
        model="lm",
        module=sources,
        optimizer=torch.optim.Adam(sources.parameters(), 0.1),
        train_data_loader=[padded_batch(i) for i in (7, 8)],
    )
    config = EngineConfig(
        train_iters=steps,
        progress=False,
        checkpoint_dir=folder,
        checkpoint_step=None if folder is None else 1,
        keep_last=None,
        **{"adapters_only": True, **settings},
    )
    return Engine.bilevel(mixture, lm, config=config, hooks=hooks)


def tensors(engine: Engine) -> dict[str, Tensor]:
    return {
        f"{p.name}.{name}": value.clone()
        for p in engine.problems
        for name, value in p.module.state_dict().items()
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_run_ends_as_one_without_a_break(tmp_path: Path, stop: int) -> None:
    """To the bit, from within a loop too; batch statistics, which change, are saved."""
    whole = program(None, 11)
    start = tensors(whole)
    whole.run()
    assert not torch.equal(start["lm.norm.running_mean"], tensors(whole)["lm.norm.running_mean"])
    program(tmp_path, stop).run()
    again = program(tmp_path, 8)
    again.run(resume="auto")
    last = program(tmp_path, 11)
    last.run(resume="auto")
    assert_equal(tensors(last), tensors(whole))


def test_the_frozen_network_is_left_out(tmp_path: Path) -> None:
    sizes = {}
    for only in (True, False):
        engine = program(None, 3, lambda: network(width=256), adapters_only=only)
        engine.run()
        engine.save(tmp_path / str(only))
        sizes[only] = (tmp_path / str(only)).stat().st_size
        held = read_checkpoint(tmp_path / str(only))[1]["problems"]["lm"]["state"]["module"]
        assert ("mix.layer.weight" in held, "mix.up" in held) == (not only, True)
        assert "norm.running_mean" in held
    frozen = sum(p.numel() for p in network(width=256).parameters() if not p.requires_grad)
    assert sizes[False] - sizes[True] > 3.9 * frozen


@pytest.mark.parametrize("only", [True, False])
def test_it_is_loaded_by_any_program_of_the_same_network(tmp_path: Path, only: bool) -> None:
    first = program(None, 4)
    first.run()
    first.save(tmp_path / "one.ckpt")
    other = program(None, 4, adapters_only=only)
    other.load(tmp_path / "one.ckpt")
    assert_equal(tensors(other), tensors(first))
    other.save(tmp_path / "two.ckpt")
    third = program(None, 4)
    third.load(tmp_path / "two.ckpt")
    assert_equal(tensors(third), tensors(first))


def changed() -> nn.Module:
    net = network()
    net.head.weight.data[3, 5] += 1e-6
    return net


def renamed() -> nn.Module:
    net = network()
    net.other = net.norm
    del net.norm
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: network(base=3),
            r"adapters_only=True\), without what no step had changed, and in the module of problem "
            r"'lm' 'words\.weight' and 3 more of \d+ have other values here than there; build it "
            r"from the same pretrained parameters",
        ),
        (changed, r"'lm' 'head\.weight' have other values here than there"),
        (lambda: network(width=16), r"'words\.weight' .* was \(12, 32\) float32 and is \(12, 16\)"),
        (renamed, r"module of problem 'lm' it has norm\.weight, .* build the module it was saved"),
        (lambda: network().double(), r"was \(12, 32\) float32 and is \(12, 32\) float64 here"),
    ],
    ids=["another base", "one number", "width", "names", "type"],
)
def test_another_network_is_refused_and_left_as_it_is(
    tmp_path: Path, make: Make, message: str
) -> None:
    first = program(None, 4)
    first.run()
    first.save(tmp_path / "one.ckpt")
    other = program(None, 4, make)
    before = tensors(other)
    with pytest.raises(CheckpointError, match=message):
        other.load(tmp_path / "one.ckpt")
    assert_equal(tensors(other), before)


class Averages(Hook):
    """Changes a frozen parameter, without autograd's notice, from a step on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step >= self.start:
            net = engine.problems[1].module
            net.head.weight.data.mul_(0.9)


def test_what_a_hook_changes_is_saved_as_long_as_the_run_goes(tmp_path: Path) -> None:
    """Also by runs that were resumed from there and change it no more."""
    whole = program(None, 9, hooks=(Averages(3),))
    whole.run()
    program(tmp_path, 5, hooks=(Averages(3),)).run()
    for steps in (6, 7, 9):
        last = program(tmp_path, steps, hooks=(Averages(3),))
        last.run(resume="auto")
    assert_equal(tensors(last), tensors(whole))
    idle = program(tmp_path / "idle", 9, hooks=(Averages(99),))
    idle.load(tmp_path / f"step-{5:010d}.ckpt")
    idle.save(tmp_path / "again.ckpt")
    fresh = program(None, 9, hooks=(Averages(99),))
    fresh.load(tmp_path / "again.ckpt")
    assert_equal(tensors(fresh), tensors(idle))


def test_what_was_frozen_after_training_is_saved(tmp_path: Path) -> None:
    engine = program(None, 4)
    engine.run()
    lm = engine.problems[1]
    lm.module.mix.up.requires_grad_(False)
    engine.save(tmp_path / "one.ckpt")
    other = program(None, 4)
    other.load(tmp_path / "one.ckpt")
    assert_equal(tensors(other), tensors(engine))
    assert not other.problems[1].module.mix.up.requires_grad


def test_a_load_that_fails_half_way_changes_nothing(tmp_path: Path) -> None:
    class Picky(Hook):
        def load_state_dict(self, state: Any) -> None:
            raise ValueError("not this one")

    first = program(None, 4, hooks=(Picky(),))
    first.run()
    first.save(tmp_path / "one.ckpt")
    other = program(None, 4, hooks=(Picky(),))
    other.run()
    before = tensors(other)
    with pytest.raises(Exception, match="not this one"):
        other.load(tmp_path / "one.ckpt")
    assert_equal(tensors(other), before)


@pytest.mark.filterwarnings("ignore:.*will be removed in v6.*:FutureWarning")
def test_adapters_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from support.causal_models import gpt2

    def model(base: int = 0) -> nn.Module:
        net = gpt2("sdpa")
        torch.manual_seed(base)
        if base:
            torch.nn.init.normal_(net.transformer.wte.weight)
        config = peft.LoraConfig(
            r=2, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True
        )
        return peft.get_peft_model(net, config)

    whole = program(None, 8, model)
    whole.run()
    program(tmp_path, 5, model).run()
    again = program(tmp_path, 8, model)
    again.run(resume="auto")
    assert_equal(tensors(again), tensors(whole))
    file = tmp_path / f"step-{8:010d}.ckpt"
    held = read_checkpoint(file)[1]["problems"]["lm"]["state"]["module"]
    assert all("lora" in name for name in held)
    with pytest.raises(CheckpointError, match=r"wte\.weight'.* have other values here than there"):
        program(None, 8, lambda: model(3)).load(file)
