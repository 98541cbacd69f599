"""Learned weights of data: a record a seed, which is not made again."""

from __future__ import annotations

import importlib
import json


def test_it_leaves_a_record_a_seed_and_goes_on(benchmark_modules, tmp_path, capsys, monkeypatch):
    module = importlib.import_module("data_weighting")
    for name, small in {"EACH": 12, "CLEAN": 6, "TEST": 6, "WIDTH": 8, "BATCH": 4}.items():
        monkeypatch.setattr(module, name, small)
    words = ["--out", str(tmp_path), "--seeds", "1", "--steps", "5"]
    assert module.main(words) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "steps5-seed0.json").read_text())
    assert set(record["sources"]) == {*module.GOOD, *module.BAD}
    assert set(record["test_loss"]) > {"uniform", "loss filter", "tuned mixture", "sources"}
    assert f"| uniform | {record['test_loss']['uniform']:.3f} | 0.000 |" in printed
    monkeypatch.setattr(module, "Run", None)
    assert module.main(words) == 0
    assert capsys.readouterr().out == printed
    train, clean, test = module.corpus(0)
    texts = [{tuple(s["input_ids"]) for s in part} for part in (train, clean, test)]
    assert not texts[1] & texts[2] and not texts[0] & texts[1]
