"""Settings of a problem: what is refused, and what old names mean."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    IterativeProblem,
    Neumann,
    Unroll,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "nuemann"}, r"type='nuemann'\) is not a known.*'darts'.*'cg'.*or give a Hyper"),
        ({"type": None}, r"type=None\) is not a known hypergradient"),
        ({"type": Neumann}, r"type=Neumann\) received the class; instantiate it: .*Neumann\(\)"),
        ({"precision": "float16"}, r"precision='float16'\) is not one of fp32, fp16, bf16"),
        ({"fp16": True, "precision": "bf16"}, "asks for two precisions; keep only precision="),
        ({"fp16": True, "precision": "fp32"}, "asks for two precisions; keep only precision="),
        ({"unroll_steps": 0}, r"unroll_steps=0\) must be an integer of at least 1"),
        ({"unroll_steps": 1.0}, r"unroll_steps=1.0\) must be an integer"),
        ({"unroll_steps": True}, r"unroll_steps=True\) must be an integer"),
        ({"gradient_accumulation": 0}, r"gradient_accumulation=0\) must be an integer of at le"),
        ({"warmup_steps": -1}, r"warmup_steps=-1\) must be an integer of at least 0"),
        ({"neumann_iterations": -1}, r"neumann_iterations=-1\) must be an integer of at least 0"),
        ({"cg_iterations": 0.5}, r"cg_iterations=0.5\) must be an integer of at least 0"),
        ({"log_step": -2}, r"log_step=-2\) must be an integer of at least -1"),
        ({"gradient_clipping": -1.0}, r"gradient_clipping=-1.0\) is negative.*0 for no clipping"),
        ({"initial_dynamic_scale": 0}, r"initial_dynamic_scale=0\) must be positive and finite"),
        ({"darts_alpha": -0.01}, r"darts_alpha=-0.01\) must be positive and finite"),
        ({"sama_adam_alpha": float("inf")}, r"sama_adam_alpha=inf\) must be positive and finite"),
        ({"neumann_alpha": float("nan")}, r"neumann_alpha=nan\) must be positive and finite"),
        ({"cg_alpha": 0.0}, r"cg_alpha=0.0\) must be positive and finite"),
        ({"scale_factor": 1.0}, r"scale_factor=1.0\) must be above 1"),
        ({"scale_factor": "2"}, r"scale_factor='2'\) must be above 1"),
        ({"gradient_clipping": "1"}, r"gradient_clipping='1'\) is negative or not a finite number"),
        ({"gradient_clipping": float("inf")}, r"gradient_clipping=inf\) is negative or not a fin"),
        ({"darts_alpha": "small"}, r"darts_alpha='small'\) must be positive and finite"),
        ({"initial_dynamic_scale": None}, r"initial_dynamic_scale=None\) must be positive"),
        ({"first_order": "False"}, r"first_order='False'\) must be True or False"),
        ({"retain_graph": None}, r"retain_graph=None\) must be True or False"),
        ({"allow_unused": []}, r"allow_unused=\[\]\) must be True or False"),
        ({"log_local_step": 2}, r"log_local_step=2\) must be True or False"),
        ({"darts_multitask": "no"}, r"darts_multitask='no'\) must be True or False"),
        ({"sama_multitask": "no"}, r"sama_multitask='no'\) must be True or False"),
        ({"fp16": "no"}, r"fp16='no'\) must be True or False"),
        ({"plateau_metric": 3}, r"plateau_metric=3\) must be a name, such as 'loss'"),
        ({"hypergradient_parameters": "fc"}, r"hypergradient_parameters='fc' must be a tuple of"),
        ({"compile": "yes"}, r"compile='yes'\) must be True, False, or a dictionary"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Config(**settings)


def test_fp16_is_an_old_name_of_a_precision() -> None:
    assert Config(fp16=True).precision == "fp16"
    assert Config(fp16=True, precision="fp16").precision == "fp16"
    assert Config(fp16=False).precision == "fp32"
    assert Config(fp16=False, precision="bf16").precision == "bf16"


def test_an_algorithm_may_be_given_as_an_object() -> None:
    algorithm = ConjugateGradient(iterations=7)
    assert Config(type=algorithm).type is algorithm


def test_a_configuration_is_frozen_and_can_be_varied() -> None:
    config = Config(fp16=True, unroll_steps=3)
    with pytest.raises(FrozenInstanceError):
        config.unroll_steps = 4  # type: ignore[misc]
    varied = replace(config, unroll_steps=4)
    assert (varied.unroll_steps, varied.precision) == (4, "fp16")


def test_bettys_defaults() -> None:
    config = Config()
    assert (config.type, config.unroll_steps, config.gradient_accumulation) == ("darts", 1, 1)
    assert (config.darts_alpha, config.initial_dynamic_scale, config.log_step) == (0.01, 4096.0, -1)
    assert config.allow_unused
    assert config.first_order


def test_an_iterative_problem_refuses_a_type_that_does_not_unroll() -> None:
    class Inner(IterativeProblem):
        pass

    assert Inner("inner").hypergradient == Unroll()
    with pytest.raises(
        ConfigurationError,
        match=r"'inner' is of class Inner.*type='cg'.*derive it from ImplicitProblem",
    ):
        Inner("inner", Config(type="cg")).hypergradient
