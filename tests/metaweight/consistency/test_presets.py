"""Published settings: that they are there, and that every one of them trains."""

from __future__ import annotations

import pytest
from support.semi_supervised import labelled_batch, noisy, run, student, unlabelled_batch

from metaweight import ConfigurationError
from metaweight.consistency import PRESETS, RampHook, preset

EVERY = [(method, name) for method, named in PRESETS.items() for name in named]


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_every_preset_trains(method: str, name: str) -> None:
    given = preset(method, name)
    average = given.average("student")
    problem = student(
        given.method,
        loader=([labelled_batch(5)], [unlabelled_batch(5)]),
        entropy_weight=given.entropy_weight,
        normalise=given.normalise,
        strong_augment=noisy,
        **({"teacher": average} if given.method.needs_teacher else {}),
    )
    engine = run(problem, 4, RampHook("student", given.ramp))
    assert engine.global_step == 4
    assert all(p.isfinite().all() for p in problem.module.parameters())


def test_the_realistic_protocol() -> None:
    """Weight at the top, learning rate and decay of each method."""
    found = {
        m: (p["realistic"].ramp.weight, p["realistic"].lr, p["realistic"].beta)
        for m, p in PRESETS.items()
        if "realistic" in p
    }
    assert found == {
        "pseudo_label": (1.0, 3e-4, None),
        "pi_model": (20.0, 3e-4, None),
        "vat": (0.3, 3e-3, None),
        "mean_teacher": (8.0, 4e-4, 0.95),
        "ict": (100.0, 4e-4, 0.999),
        "mixmatch": (100.0, 3e-3, None),
    }


def test_unknown_names() -> None:
    with pytest.raises(ConfigurationError, match="pseudo_label, pi_model"):
        preset("pi")
    with pytest.raises(ConfigurationError, match="of this method there are: paper, realistic"):
        preset("ict", "usb")
