"""Workers of a loader: when they start, end, and what they are given."""

from __future__ import annotations

import gc
import os
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
from support.drawn_samples import Augmented
from torch.utils.data import Dataset

from metaweight.data import SampleLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class ProcessIds(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_workers_start_with_the_first_batch_and_stay():
    # Those of an earlier test end when its loader is collected.
    gc.collect()
    loader = SampleLoader(ProcessIds(), 2, num_workers=2)
    iterator = iter(loader)
    assert not torch.multiprocessing.active_children()
    first = torch.cat([next(iterator), *iterator])
    ids = {process.pid for process in torch.multiprocessing.active_children()}
    assert set(first.tolist()) == ids
    assert os.getpid() not in ids
    assert set(torch.cat(list(loader)).tolist()) == ids
    del iterator, loader
    gc.collect()
    assert not torch.multiprocessing.active_children()


@pytest.mark.parametrize("abandoned", [False, True])
def test_workers_end_by_themselves_where_a_circle_of_garbage_holds_them(abandoned, monkeypatch):
    # A worker that is not told to end is waited for, for this long, and then stopped.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 30)
    stopped = []
    monkeypatch.setattr(BaseProcess, "terminate", stopped.append)
    loader = SampleLoader(Augmented(), 2, num_workers=2)
    iterator = iter(loader)
    first = next(iterator) if abandoned else list(iterator)
    circle = [loader, iterator, first]
    circle.append(circle)
    del loader, iterator, first, circle
    gc.collect()
    assert not torch.multiprocessing.active_children()
    assert not stopped


def test_the_garbage_collector_of_a_worker_leaves_alone_what_is_inherited():
    class Frozen(ProcessIds):
        def __getitem__(self, index: int) -> int:
            return gc.get_freeze_count()

    inherited = [[] for _ in range(20_000)]
    before = gc.get_freeze_count()
    (frozen,) = SampleLoader(Frozen(), 4, num_workers=1)
    assert frozen.min() > before + len(inherited)
