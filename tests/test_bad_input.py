"""What users get wrong when they build a program: refused at once, by name, and nothing is changed.

One problem by itself is in ``test_bad_input_parts.py``; what comes later in
``test_bad_input_running.py``, ``…_hypergradients.py`` and ``…_resuming.py``; tools in
``…_tools.py``. Settings of single classes are also in their own tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bad_input import Inner, Outer, Point, Row, assert_refused, numbers, problem
from support.small import Chase
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from metaweight import (
    Config,
    ConfigurationError,
    DataError,
    Engine,
    EngineConfig,
    GraphError,
    Hook,
    NormLogger,
    ProgressBar,
)

CPU = EngineConfig(strategy="cpu", train_iters=1)


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def made(**settings: Any) -> Callable[[Any], object]:
    """Construct a problem named "a" from its settings."""
    return lambda _: problem(name=settings.pop("name", "a"), **settings)


def spent() -> Any:
    generator = (batch for batch in numbers(1.0))
    assert len(list(generator)) == 1
    return generator


def alone(**settings: Any) -> Callable[[], list[Any]]:
    return lambda: [problem(name="a", **settings)]


def build(problems: Any, **settings: Any) -> Engine:
    return Engine(problems, settings.pop("config", CPU), **settings)


def refused(error: type[Exception], words: str, **settings: Any) -> Row:
    """A problem that no engine can be built of; the one before it in the list is fine."""
    return Row(error, words, build, lambda: [problem(name="good"), problem(name="a", **settings)])


def given(error: type[Exception], words: str, **settings: Any) -> Row:
    return Row(error, words, lambda problems: build(problems, **settings), alone())


def linked(words: str, edges: Callable[[Any, Any, Any], Any]) -> Row:
    """Dependencies that make no graph of outer, inner and a problem that is not listed."""

    def act(problems: Any) -> None:
        outer, inner, absent = problems
        Engine([outer, inner], CPU, edges(outer, inner, absent))

    def programs() -> list[Any]:
        return [
            problem(kind, name) for kind, name in ((Outer, "outer"), (Inner, "inner"), (Chase, "x"))
        ]

    return Row(GraphError, words, act, programs)


class Sum(nn.Module):
    def __init__(self, w: nn.Parameter, v: nn.Parameter) -> None:
        super().__init__()
        self.w, self.v = w, v

    def forward(self) -> torch.Tensor:
        return self.w + self.v


def double(value: float, **settings: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64), **settings)


def partly_meta() -> nn.Module:
    return Sum(double(0.0), nn.Parameter(torch.zeros(1, device="meta")))


def frozen() -> nn.Module:
    module = Point(0.0)
    module.requires_grad_(False)
    return module


def born_in_inference() -> nn.Module:
    with torch.inference_mode():
        return Point(0.0)


class Configured(Chase):
    """Configures what a class attribute says."""

    own: Any

    def configure_module(self) -> Any:
        return self.own.get("module")

    def configure_optimizer(self) -> Any:
        return self.own.get("optimizer")

    def configure_scheduler(self) -> Any:
        return self.own.get("scheduler")

    def configure_train_data_loader(self) -> Any:
        return self.own.get("loader")

    def param_groups(self) -> Any:
        return self.own.get("groups")


def configured(error: type[Exception], words: str, parts: Any, **settings: Any) -> Row:
    def problems() -> list[Any]:
        kind = type("Configured", (Configured,), {"own": parts})
        module = settings.get("module", Point(0.0))
        optimizer = settings.get("optimizer", module and sgd(module))
        data = settings.get("data", numbers(1.0))
        return [problem(name="good"), kind("a", None, module, optimizer, train_data_loader=data)]

    return Row(error, words, build, problems)


class NoLoss(Chase):
    training_step = None


def sharing_memory(module: Any, other: Any) -> Any:
    module.w.data = other.w.data
    return module


def two(share: Callable[[Any, Any], tuple[Any, Any]], **config: Any) -> Callable[[], list[Any]]:
    """Outer and inner over modules and optimizers that ``share`` makes of two points."""

    def problems() -> list[Any]:
        outer, inner = share(Point(0.5), Point(0.0))
        return [
            Outer("outer", None, *outer, train_data_loader=numbers(3.0)),
            Inner("inner", Config(**config), *inner, train_data_loader=numbers(1.0)),
        ]

    return problems


def path(problems: Any) -> Engine:
    outer, inner = problems
    return Engine([outer, inner], CPU, {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}})


class Watching(Engine):
    def validation(self) -> dict[str, float]:
        return {}


def grouped() -> list[Any]:
    """One whose parameter groups take the place of those of its optimizer, and an empty one."""
    point = Point(0.0)
    kind = type("Grouped", (Configured,), {"own": {"groups": [{"params": [point.w], "lr": 0.5}]}})
    fine = kind("fine", None, point, sgd(point), train_data_loader=numbers(1.0))
    return [fine, problem(name="a", data=[])]


BUILDING = {
    "problems: none": Row(GraphError, "problems=[] … at least one", lambda _: build([])),
    "problems: None": Row(GraphError, "problems=None … [outer, inner]", lambda _: build(None)),
    "problems: one": Row(
        GraphError, "Chase object … [outer, inner]", lambda p: build(p[0]), alone()
    ),
    "problems: dictionary": Row(
        GraphError, "problems={'a' … list", lambda p: build({"a": p[0]}), alone()
    ),
    "problems: module": Row(
        GraphError, "problems[0] is Identity( … ImplicitProblem", lambda _: build([nn.Identity()])
    ),
    "problems: class": Row(
        GraphError, "problems[0] is the class Chase … ImplicitProblem", lambda _: build([Chase])
    ),
    "problems: twice the same": Row(
        GraphError, "'a' twice … once", lambda p: build([*p, *p]), alone()
    ),
    "problems: two of one name": Row(
        GraphError, "named 'a' … its own", build, lambda: [problem(name="a"), problem(name="a")]
    ),
    "config: a problem's": given(
        ConfigurationError, "Engine(config=Config( … EngineConfig", config=Config()
    ),
    "config: dictionary": given(
        ConfigurationError, "Engine(config={'train … EngineConfig", config={"train_iters": 1}
    ),
    "config: class": given(ConfigurationError, "the class EngineConfig", config=EngineConfig),
    "hooks: class": given(
        ConfigurationError, "hooks[0] is the class Hook … rather than its class", hooks=[Hook]
    ),
    "hooks: function": given(
        ConfigurationError, "hooks[0] is <built-in … derived from Hook", hooks=[print]
    ),
    "hooks: no list": given(
        ConfigurationError, "hooks= … ProgressBar … give one", hooks=ProgressBar()
    ),
    "hooks: twice the same": given(
        ConfigurationError, "NormLogger twice … once", hooks=[NormLogger()] * 2
    ),
    "env: text": given(ConfigurationError, "env='maze' … derived from Env", env="maze"),
    "device: not there": given(
        ConfigurationError, "device='cuda:77' … 'cpu'", config=EngineConfig(device="cuda:77")
    ),
    "device: meta": given(
        ConfigurationError, "'a' … 'meta' … 'w' … 'cuda'", config=EngineConfig(device="meta")
    ),
    "early stopping without validation": given(
        ConfigurationError,
        "early_stopping=True … Engine has none … override",
        config=EngineConfig(early_stopping=True),
    ),
    "name: of an engine's method": Row(
        GraphError, "'run' … of Engine … another name", build, lambda: [problem(name="run")]
    ),
    "name: of a problem's attribute": Row(
        GraphError,
        "'module' … of Chase",
        build,
        lambda: [problem(name="a"), problem(name="module")],
    ),
    "module: none": refused(
        GraphError, "'a' has no module … configure_module", module=None, optimizer=None
    ),
    "module: without parameters": refused(
        GraphError, "'a' has nothing to train", module=nn.Identity(), optimizer=sgd(Point(0.0))
    ),
    "module: frozen": refused(
        GraphError, "'a' has nothing to train … requires a gradient", module=frozen()
    ),
    "module: of integers": refused(
        GraphError,
        "'a' has nothing to train",
        module=nn.ParameterList([nn.Parameter(torch.zeros(1).long(), requires_grad=False)]),
    ),
    "module: on meta": refused(
        ConfigurationError,
        "'w' … 'a' … 'meta' … to_empty(device='cpu')",
        module=Point(0.0).to("meta"),
    ),
    "module: partly on meta": refused(
        ConfigurationError, "'v' … 'a' … 'meta' … to_empty", module=partly_meta()
    ),
    "module: asked onto meta": refused(ConfigurationError, "'a' … 'meta' … 'w'", device="meta"),
    "module: made in inference mode": Row(
        ConfigurationError,
        "'w' … 'a' … inference_mode … outside",
        made(module=born_in_inference(), optimizer=None),
    ),
    "optimizer: none": refused(
        GraphError, "'a' has no optimizer … configure_optimizer", optimizer=None
    ),
    "optimizer: over foreign parameters": refused(
        GraphError, "'a' has nothing to train … this module's", optimizer=sgd(Point(0.0))
    ),
    "loader: none": Row(
        GraphError,
        "'a' has no data … train_data_loader=",
        build,
        lambda: [Chase("a", None, p := Point(0.0), sgd(p))],
    ),
    "loader: empty list": refused(
        DataError, "Loader 0 of problem 'a', of type list … no batches … give it data", data=[]
    ),
    "loader: shorter than a batch": refused(
        DataError,
        "'a', of type DataLoader … drop_last=True",
        data=DataLoader(TensorDataset(torch.ones(3, 1)), 4, drop_last=True),
    ),
    "loader: spent generator": refused(
        DataError, "'a', of type generator … read to its end", data=spent()
    ),
    "training step: none": refused(GraphError, "'a' has no loss … training_step", cls=NoLoss),
    "configured: module": configured(
        ConfigurationError, "'a' … module='net'", {"module": "net"}, module=None
    ),
    "configured: optimizer": configured(
        ConfigurationError, "'a' … optimizer=[1]", {"optimizer": [1]}, optimizer=None
    ),
    "configured: scheduler": configured(
        ConfigurationError, "'a' … another optimizer", {"scheduler": StepLR(sgd(Point(0.0)), 1)}
    ),
    "configured: loader": configured(
        DataError, "Loader 0 of problem 'a' is 5", {"loader": 5}, data=None
    ),
    "configured: groups": configured(
        ConfigurationError, "param_groups() of problem 'a' … 3 … 'params'", {"groups": 3}
    ),
    "configured: groups without parameters": configured(
        ConfigurationError, "param_groups() of problem 'a' … 'params'", {"groups": [{"lr": 0.1}]}
    ),
    "groups: another problem is refused": Row(
        DataError, "Loader 0 of problem 'a' … no batches", build, grouped
    ),
    "shared: one module on a path": Row(
        GraphError,
        "'outer' and 'inner' both train 'w' … its own module",
        path,
        two(lambda a, b: ((a, sgd(a)), (a, sgd(a)))),
    ),
    "shared: one parameter on a path": Row(
        GraphError,
        "both train 'w' … freeze it",
        path,
        two(lambda a, b: ((a, sgd(a)), (s := Sum(a.w, b.w), sgd(s)))),
    ),
    "shared: gradients accumulate": Row(
        GraphError,
        "'inner' and 'outer' both train 'w' … gradient_accumulation=2 … use 1",
        build,
        two(lambda a, b: ((a, sgd(a)), (a, sgd(a))), gradient_accumulation=2),
    ),
    "shared: memory": Row(
        GraphError,
        "'w' of problem 'outer' and 'w' of problem 'inner' are different … share memory … the same",
        path,
        two(lambda a, b: ((a, sgd(a)), (sharing_memory(b, a), sgd(b)))),
    ),
    "shared: one optimizer": Row(
        GraphError,
        "optimizer of problem 'outer' holds 'w' of problem 'inner' … its own module",
        path,
        two(lambda a, b: ((a, o := torch.optim.SGD([a.w, b.w], 0.1)), (b, o))),
    ),
    "shared: too much in an optimizer": Row(
        GraphError,
        "optimizer of problem 'inner' holds 'w' of problem 'outer'",
        build,
        two(lambda a, b: ((a, sgd(a)), (b, torch.optim.SGD([a.w, b.w], 0.1)))),
    ),
    "edges: a list": linked("dependencies=[ … 'u2l': {upper: [lower]}", lambda o, i, x: [o, i]),
    "edges: lists in place of dictionaries": linked(
        "dependencies={'u2l': [ … dictionaries", lambda o, i, x: {"u2l": [o, i]}
    ),
    "edges: an end without its list": linked(
        "['l2u'] has 'outer' for 'inner' … list", lambda o, i, x: {"u2l": {o: [i]}, "l2u": {i: o}}
    ),
    "edges: names": linked(
        "['l2u'] has the name 'inner' … problem itself",
        lambda o, i, x: {"u2l": {"outer": ["inner"]}, "l2u": {"inner": ["outer"]}},
    ),
    "edges: unknown key": linked("'l2l' … 'u2l'", lambda o, i, x: {"l2l": {o: [i]}}),
    "edges: to a problem not listed": linked(
        "'x' … ['outer', 'inner'] … list it", lambda o, i, x: {"u2l": {o: [x]}, "l2u": {x: [o]}}
    ),
    "edges: the wrong way": linked(
        "'inner' enters the loss of 'outer' … no 'l2u' path … add one",
        lambda o, i, x: {"u2l": {i: [o]}, "l2u": {i: [o]}},
    ),
    "edges: a cycle": linked(
        "cycle … 'outer' -> 'inner' -> 'outer' … remove", lambda o, i, x: {"l2u": {i: [o], o: [i]}}
    ),
}


@pytest.mark.parametrize("name", BUILDING)
def test_it_is_refused_by_name_and_nothing_changes(name: str) -> None:
    assert_refused(BUILDING[name])


@pytest.mark.parametrize(
    "problems",
    [
        two(lambda a, b: ((a, sgd(a)), (a, sgd(a)))),
        two(lambda a, b: ((a, sgd(a)), (Sum(a.w, b.w), sgd(b)))),
    ],
)
def test_what_no_hypergradient_path_joins_may_be_shared(problems: Any) -> None:
    outer, inner = build(problems()).problems
    assert list(outer.trainable_parameters())
    assert list(inner.trainable_parameters())
