"""Learned weights of data: a record a seed, which is not made again."""

from __future__ import annotations

import importlib
import json

import pytest


@pytest.fixture
def small(benchmark_modules, monkeypatch):
    """The program with few texts and a small model."""
    texts, program = (importlib.import_module(name) for name in ("data_texts", "data_weighting"))
    for module, sizes in (
        (texts, {"EACH": 12, "CLEAN": 6, "TEST": 6}),
        (program, {"WIDTH": 8, "BATCH": 4}),
    ):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
    return program


def test_it_leaves_a_record_a_seed_and_goes_on(small, tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path), "--seeds", "1", "--steps", "5"]
    assert small.main(words) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "steps5-seed0.json").read_text())
    assert set(record["sources"]) == set(record["each"]) == {*small.SOURCES}
    assert set(record["test_loss"]) > {"uniform", "loss filter", "tuned mixture", "sources"}
    assert all(0 <= share < 1 for share in record["transfer"]["saved"].values())
    assert f"| uniform | {record['test_loss']['uniform']:.3f} | 0.000 |" in printed
    monkeypatch.setattr(small, "Run", None)
    assert small.main(words) == 0
    assert capsys.readouterr().out == printed
    train, clean, test = small.corpus(0)
    texts = [{tuple(s["input_ids"]) for s in part} for part in (train, clean, test)]
    assert not texts[1] & texts[2] and not texts[0] & texts[1]


def test_letters_are_rotated_and_come_back(benchmark_modules):
    rotated = importlib.import_module("data_texts").rotated_byte
    assert bytes(map(rotated, b"Hello, Zoo 1!")) == b"Uryyb, Mbb 1!"
    assert [rotated(rotated(byte)) for byte in range(256)] == list(range(256))


def test_a_wider_model_stops_the_clock_where_it_has_the_loss(small, monkeypatch):
    run = small.Run(0, 20)
    seen = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr(run, "test_loss", lambda model: next(seen))
    assert run.plain(run.train, until=2.5)[1] == 0.1
    monkeypatch.setattr(run, "test_loss", lambda model: 3.0)
    assert run.plain(run.train, until=2.5)[1] == 1
