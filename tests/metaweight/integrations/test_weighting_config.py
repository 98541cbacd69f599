"""Settings of learned weights, and doors whose package is missing."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from metaweight.problems import ConfigurationError
from torch import nn

from metaweight.integrations import TextWeighting, WeightingConfig
from metaweight.integrations.required import required_for
from metaweight.lm import Sources
from metaweight.weighting import MetaWeightNet


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_network": MetaWeightNet}, "weight_network=the class MetaWeightNet; give a mod"),
        ({"learning_rate": 0.0}, "learning_rate=0.0.* above 0 and finite; 0.001 is the us"),
        ({"normalise": "yes"}, "normalise='yes'"),
        ({"warmup": 1.0}, r"warmup=1.0\) must be a share of the steps in \[0, 1\)"),
        ({"every": 0}, r"every=0\) must be an integer of at least 1"),
        ({"derivative": "one_sided"}, r"derivative='one_sided'; give Reweighting\(\) or"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        WeightingConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "word"}, "level='word'"),
        ({"average": "words"}, "average='words'"),
        (
            {"weight_network": MetaWeightNet()},
            r"give Sources\(\[\.\.\.\]\) with level='source', or",
        ),
        ({"weight_network": Sources, "level": "token"}, "the class Sources; give a module, or"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0.* above 0 and finite; 0.1 for sources and"),
        ({"warmup": 1.0}, r"warmup=1.0\) must be a share of the steps in \[0, 1\)"),
        ({"every": 0}, r"every=0\) must be an integer of at least 1"),
        ({"micro_batch_size": 0}, r"micro_batch_size=0\) must be an integer of at least 1"),
        ({"source": ""}, "source=''"),
        ({"derivative": "one_sided"}, r"derivative='one_sided'; give Reweighting\(\) or"),
    ],
)
def test_settings_of_texts_that_do_not_fit_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextWeighting(**settings)


def test_the_usual_learning_rate_is_that_of_the_level() -> None:
    rates = [TextWeighting(level).rate for level in ("source", "sequence", "token")]
    assert rates == [0.1, 1e-3, 1e-3]
    assert TextWeighting(learning_rate=0.5).rate == 0.5
    given = Sources(["a", "b"])
    assert TextWeighting(weight_network=given).copied_network() is not given


def test_the_weight_network_is_a_copy_or_drawn_from_the_seed() -> None:
    given = nn.Linear(1, 1)
    made = WeightingConfig(given).made_network(0)
    assert made is not given and torch.equal(made.weight, given.weight)
    before = torch.get_rng_state()
    first, same, other = (next(WeightingConfig().made_network(s).parameters()) for s in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("door", "package"),
    [
        ("huggingface", "accelerate"),
        ("huggingface", "transformers"),
        ("lightning", "lightning"),
        ("trl", "datasets"),
        ("trl", "trl"),
    ],
)
def test_a_missing_package_is_named_with_the_command(
    door: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"metaweight.integrations.{door}"
    if door == "huggingface" and package == "transformers":
        pytest.importorskip("accelerate")
    if package == "trl":
        pytest.importorskip("datasets")
    for module in [m for m in sys.modules if m == name or m.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{name} needs the package '{package}'.*pip install 'metaweight\[{door}\]'"
    with pytest.raises(ImportError, match=message):
        importlib.import_module(name)


def test_an_error_of_another_kind_is_left_alone() -> None:
    with pytest.raises(KeyError, match="else"), required_for("a", "b"):
        raise KeyError("else")
