"""Two processes with parts of every parameter do what one does with the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.engines.distributed.shard_layout import ShardLayout
from support import fsdp_checks
from support.shared_out import TYPES
from support.two_processes import CLOSE, same


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process finds, asked for by name."""
    found: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name not in found:
            found[name] = fsdp_checks.RESULTS[name](0, 1, tmp_path_factory.mktemp(name))
        return found[name]

    return find


def same_method(found: list[dict[str, Any]], check: str, key: Any, alone: Any) -> None:
    results = [each[check] for each in found]
    assert isinstance(results[0], dict), results[0]
    same([result and {"it": result[key]} for result in results], "it", alone(check)[key])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", fsdp_checks.QUICK)
def test_two_processes_end_where_one_does(
    kind: str, accumulation: int, together_in_parts: list[dict[str, Any]], alone: Any
) -> None:
    """With accumulation gradients are clipped too."""
    same_method(together_in_parts, "methods", (kind, accumulation), alone)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in fsdp_checks.QUICK])
def test_so_do_they_with_the_other_methods(
    kind: str, accumulation: int, slowly_in_parts: list[dict[str, Any]], alone: Any
) -> None:
    same_method(slowly_in_parts, "other_methods", (kind, accumulation), alone)


@pytest.mark.parametrize(
    "name", ["rolled_back", "rebuilt", "gradients_seen", "altered", "channels_last", "whole_states"]
)
def test_so_do(name: str, together_in_parts: list[dict[str, Any]], alone: Any) -> None:
    same(together_in_parts, name, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chains", "batch_norm_together", "averages"])
def test_so_do_slowly(name: str, slowly_in_parts: list[dict[str, Any]], alone: Any) -> None:
    same(slowly_in_parts, name, alone(name))


@pytest.mark.slow
def test_a_check_of_hypergradients_runs(slowly_in_parts: list[dict[str, Any]]) -> None:
    for found in slowly_in_parts:
        for error, _ in found["audited"].values():
            assert error < 1e-2
    ends = [{kind: end for kind, (_, end) in found["audited"].items()} for found in slowly_in_parts]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_ends_where_it_does_with_whole_parameters(
    precision: str, slowly_in_parts: list[dict[str, Any]]
) -> None:
    """Equal but for the last place, in which vector instructions may differ by length."""
    for found in slowly_in_parts:
        whole, parts = found["half_precision"][precision]
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", fsdp_checks.OPTIMIZERS)
def test_every_entrywise_optimizer_updates_parts(
    name: str, together_in_parts: list[dict[str, Any]], alone: Any
) -> None:
    """Of parameters of every shape, in two groups with a scheduler."""
    same_method(together_in_parts, "optimizers", name, alone)


def test_a_module_put_in_place_of_another_is_shared_out_too(
    together_in_parts: list[dict[str, Any]], alone: Any
) -> None:
    for found in together_in_parts:
        held = found["replaced"].pop("held")
        assert held.tolist() == [9, 3, 3, 1]
    expected = {name: value for name, value in alone("replaced").items() if name != "held"}
    same(together_in_parts, "replaced", expected)


def test_a_process_holds_its_part_between_steps(together_in_parts: list[dict[str, Any]]) -> None:
    """Of 31 and 19 numbers of 8 bytes; the two of shape (1,) are whole in both. The state is Adam's
    two; recorded are parameters, gradients and both states of two steps."""
    low, top = 9 + 3 + 3 + 1, 3 + 3 + 3 + 1
    for found in together_in_parts:
        assert not isinstance(found["held_at_rest"], str), found["held_at_rest"]
        first, *later = found["held_at_rest"]["between"]
        assert first == [8 * (low + top), 0, 0, 0]
        assert all(held[:2] == [8 * (low + top), 0] for held in later)
        # Before the first step there is no state.
        assert [held[3] for held in later] == [8 * n * low for n in (2, 6, 8, 8, 8)]
        assert later[-1][2] == 8 * 2 * (low + top)
        assert {held[0] for held in found["held_at_rest"]["within"]} == {8 * (31 + 19)}


def test_a_module_used_between_steps_says_what_to_do(
    together_in_parts: list[dict[str, Any]], alone: Any
) -> None:
    for found in together_in_parts:
        said, used = found["used_at_rest"]
        assert len(said) == 3
        assert all("each of 2 processes holds a part" in text for text in said)
        assert all("within 'with engine.whole_parameters():'" in text for text in said)
        torch.testing.assert_close(used, alone("used_at_rest")[1], **CLOSE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_state_for_all", "LBFGS, which keeps one state for all parameters"),
        ("factored_state", "Adafactor, whose update of an entry depends on the others"),
        ("closure", "SGD.step was given a closure"),
        ("sharded_already", "Parameter 'weight' of problem 'fit' is of type DTensor"),
    ],
)
def test_what_cannot_be_is_refused_in_both(
    name: str, message: str, together_in_parts: list[dict[str, Any]]
) -> None:
    for found in together_in_parts:
        assert message in found[name]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("form", ["flat", "matrix", "turned", "images", "gaps"])
def test_parts_make_up_the_whole(form: str, world: int) -> None:
    images = torch.randn(2, 3, 4, 5)
    tensor = {
        "flat": torch.randn(7),
        "matrix": torch.randn(3, 5),
        "turned": torch.randn(3, 5).T,
        "images": images.to(memory_format=torch.channels_last),
        "gaps": images[:, ::2],
    }[form]
    layouts = [ShardLayout.of(tensor, rank, world) for rank in range(world)]
    parts = [layout.part(tensor) for layout in layouts]
    assert all(layout.is_part(p) for layout, p in zip(layouts, parts, strict=True))
    again = layouts[0].whole(torch.cat([*parts, torch.zeros(world)]))
    assert torch.equal(again, tensor)
    assert form == "gaps" or again.stride() == tensor.stride()
