"""The step benchmark on a card, as far as it can be seen without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmark_modules")


def test_workloads_on_a_card_have_the_same_contenders() -> None:
    from speed_workloads import ON_A_CARD, workloads

    for name in ON_A_CARD:
        for workload in workloads()[name]:
            there = workload.on("cuda")
            assert (there.device, there.steps) == ("cuda", None)
            assert set(there.contenders()) == set(workload.contenders())
            assert workload.on("cpu") is workload


def test_tensors_and_modules_are_on_the_device() -> None:
    """On a device without numbers, which computes with no tensor of the host."""
    import speed_bilevel
    from speed_mean_teacher import Images
    from speed_mlp import mlp_task
    from speed_resnet32 import Batches, parts

    speed_bilevel.plain(mlp_task(4, 3, 9).on("meta"))()
    speed_bilevel.official(mlp_task(4, 3, 9).on("meta"))()
    batches, images = Batches(2, "meta"), Images(2, 8, lambda: torch.nn.Linear(1, 1), device="meta")
    modules = (*parts("meta")[:2], images.parts()[0])
    given = (batches.x, batches.y, batches.meta_x, batches.meta_y)
    given += (images.labelled, images.labels, images.unlabelled)
    assert all(t.is_meta for t in given)
    assert all(p.is_meta for module in modules for p in module.parameters())


def test_a_turn_ends_when_the_card_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import turns

    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("waits"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**20)
    turn = turns._timed(lambda: events.append("steps"), 2, "cuda")
    assert events == ["waits", "steps", "steps", "waits"]
    assert turn.peak == 3.0
    assert turns.resident_memory("cuda") == 1.0
    turns._timed(lambda: None, 1, "cpu")
    assert len(events) == 4


def test_the_card_is_part_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from turns import environment

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    there = environment(1, "cuda")
    assert there["device"] == "a card"
    assert there["fp32 in TF32"] == "convolutions"
    assert "device" not in environment(1)


@pytest.mark.parametrize(
    ("words", "card", "message"),
    [
        (["--workload", "mlp"], False, "torch sees no GPU"),
        (["--workload", "toy"], True, "toy is measured on the CPU alone"),
        (["--grow", "all"], True, "--grow: is measured on the CPU alone"),
    ],
)
def test_what_no_card_can_do_is_refused(
    words: list[str], card: bool, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import speed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    with pytest.raises(SystemExit):
        speed.parse([*words, "--device", "cuda"])
    assert message in capsys.readouterr().err
