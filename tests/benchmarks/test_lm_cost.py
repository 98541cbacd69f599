"""The cost of weights of a language model: contenders of one program, and what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

SMALL = {"width": 32, "layers": 1, "words": 16, "length": 8, "batch": 4, "clean": 2}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", ["all parameters", "LoRA"])
def test_contenders_train_the_same_model_on_the_same_texts(
    benchmark_modules: None, trained: str, precision: str
) -> None:
    """Weights are 1 at first, and steps of the weights are small: the second losses agree
    to 1e-3, and are not the first ones. In 16 bits the first agree to what rounding leaves."""
    import lm_cost

    names = (*lm_cost.METHODS, *lm_cost.WITHOUT_FUSED)
    shape = lm_cost.Shape(**SMALL, precision=precision)
    made = lm_cost.contenders(shape, trained, steps=1, names=names)
    found: dict[str, list[float]] = {}
    for name, make in made.items():
        step = make()
        found[name] = [step(), step()]
    first, second = found.pop("plain")
    assert abs(first - second) > 1e-3
    for losses in found.values():
        assert losses[0] == pytest.approx(first, rel=1e-6 if precision == "fp32" else 1e-4)
        assert losses[1] == pytest.approx(second, rel=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["plain", "central"])
def test_attention_is_fused_but_for_contenders_without_it(
    benchmark_modules: None, name: str
) -> None:
    import lm_cost
    from support.kernels import called_kernels

    shape = lm_cost.Shape(**SMALL)
    fused = lm_cost.maker(name, shape, "all parameters", 1)()
    without = lm_cost.maker(f"{name}{lm_cost.MATH}", shape, "all parameters", 1)()
    assert called_kernels(fused).fused > 0
    assert called_kernels(fused).by_parts == 0
    assert called_kernels(without).fused == 0
    assert called_kernels(without).by_parts > 0


@pytest.mark.slow
def test_a_run_leaves_its_numbers_with_versions(run_script: Any, tmp_path: Path) -> None:
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    run = run_script("lm_cost.py", *words, "--rounds", "1", "--out", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "out" / "lm_cost.json").read_text())
    for trained in ("all parameters", "LoRA"):
        assert found[trained]["environment"]["transformers"]
        assert found[trained]["environment"]["peft"]
        assert found[trained]["shape"] == {**SMALL, "precision": "fp32", "device": "cpu"}
        rows = {row["contender"]: row for row in found[trained]["rows"]}
        assert list(rows) == ["plain", "central", "one-sided", "every 4", "rater", "forward"]
        assert rows["plain"]["times plain"] == 1
        assert rows["central"]["times plain"] > 1
        assert rows["plain"]["copies"] == 0
    assert "| every 4 |" in (tmp_path / "out" / "lm_cost.md").read_text()
