"""Programs written for Betty find its names here, with its defaults, through ``metaweight.betty``.

The table is Betty 0.2.1's public surface, written out so that it holds where Betty cannot be
installed; where it is, the same comparison is made with the package itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fork_server import Done, start_module

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Problem, Unroll
from metaweight.betty import SERVED, install, main, serve

CONFIG = {
    "type": "darts",
    "unroll_steps": 1,
    "first_order": True,
    "retain_graph": False,
    "allow_unused": True,
    "gradient_accumulation": 1,
    "gradient_clipping": 0.0,
    "precision": "fp32",
    "initial_dynamic_scale": 4096.0,
    "scale_factor": 2.0,
    "warmup_steps": 0,
    "log_step": -1,
    "log_local_step": False,
    "darts_alpha": 0.01,
    "darts_multitask": False,
    "sama_adam_alpha": 1.0,
    "sama_multitask": False,
    "neumann_iterations": 1,
    "neumann_alpha": 1.0,
    "cg_iterations": 1,
    "cg_alpha": 1.0,
}

ENGINE_CONFIG = {
    "train_iters": 50000,
    "valid_step": 500,
    "logger_type": "none",
    "roll_back": False,
    "backend": "nccl",
    "strategy": "default",
    "early_stopping": False,
    "early_stopping_mode": "min",
    "early_stopping_tolerance": 5,
    "early_stopping_metric": "loss",
}

CONSTRUCTOR = [
    "name",
    "config",
    "module",
    "optimizer",
    "scheduler",
    "train_data_loader",
    "extra_config",
]

PROBLEM = [
    "training_step",
    "forward",
    "configure_module",
    "configure_optimizer",
    "configure_scheduler",
    "configure_train_data_loader",
    "get_batch",
    "get_batch_single_loader",
    "param_groups",
    "parameters",
    "trainable_parameters",
    "meta_trainable_parameters",
    "custom_optimizer_step",
    "grad_callback",
    "param_callback",
    "epoch_callback",
    "on_inner_loop_start",
    "set_module",
    "set_optimizer",
    "set_scheduler",
    "set_train_data_loader",
    "add_child",
    "add_parent",
    "state_dict",
    "load_state_dict",
    "count",
    "paths",
    "parents",
    "children",
    "leaf",
    "name",
    "config",
    "step",
    "train",
    "eval",
    "zero_grad",
    "optimizer_step",
    "is_rank_zero",
    "epoch_counter",
]

PROBLEM_ATTRIBUTES = [
    "cfg",
    "module",
    "optimizer",
    "scheduler",
    "device",
    "env",
    "logger",
    "scaler",
    "cur_batch",
]

ENGINE = [
    "run",
    "train_step",
    "validation",
    "train",
    "eval",
    "set_dependency",
    "is_rank_zero",
    "do_validation",
]


def defaults(config: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config)}


def arguments(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]


@pytest.mark.parametrize(
    ("ours", "bettys"), [(Config, CONFIG), (EngineConfig, ENGINE_CONFIG)], ids=["problem", "engine"]
)
def test_settings_have_bettys_names_and_defaults(ours: type, bettys: dict[str, Any]) -> None:
    assert {name: defaults(ours).get(name) for name in bettys} == bettys


def test_constructors_take_bettys_arguments_in_bettys_order() -> None:
    assert arguments(ImplicitProblem.__init__)[: len(CONSTRUCTOR)] == CONSTRUCTOR
    assert arguments(Engine.__init__)[:4] == ["problems", "config", "dependencies", "env"]


@pytest.mark.parametrize("name", PROBLEM)
def test_problem_has(name: str) -> None:
    assert hasattr(Problem, name)


@pytest.mark.parametrize("name", PROBLEM_ATTRIBUTES)
def test_problem_is_made_with(name: str) -> None:
    assert hasattr(ImplicitProblem(name="inner", extra_config={"any": "thing"}), name)


def test_extra_config_is_kept_as_cfg() -> None:
    extra = {"any": "thing"}
    assert ImplicitProblem("inner", Config(), None, None, None, None, extra).cfg is extra


@pytest.mark.parametrize("name", ENGINE)
def test_engine_has(name: str) -> None:
    assert hasattr(Engine, name)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_table_is_what_the_installed_betty_says() -> None:
    pytest.importorskip("betty")
    configs = importlib.import_module("betty.configs")
    problems = importlib.import_module("betty.problems")
    engine = importlib.import_module("betty.engine")
    assert defaults(configs.Config) == CONFIG
    assert defaults(configs.EngineConfig) == ENGINE_CONFIG
    assert arguments(problems.Problem.__init__) == CONSTRUCTOR
    assert arguments(problems.ImplicitProblem.__init__) == CONSTRUCTOR
    assert arguments(engine.Engine.__init__) == arguments(Engine.__init__)[:4]


@pytest.mark.parametrize("module", SERVED)
def test_module_is_served_with_its_names(module: str) -> None:
    with serve():
        served = importlib.import_module(module)
        for name, value in SERVED[module].items():
            assert getattr(served, name) is value


def test_star_import_brings_the_public_names() -> None:
    names: dict[str, Any] = {}
    with serve():
        exec("from betty.problems import *", names)
    assert names["ImplicitProblem"] is ImplicitProblem
    assert set(SERVED["betty.problems"]) <= set(names)


@pytest.mark.parametrize("statement", ["import betty.utils", "from betty.problems import Penalty"])
def test_what_is_not_served_is_named_with_what_is(statement: str) -> None:
    with serve(), pytest.raises(ImportError, match=r"does not serve .*betty\.engine \(Engine\)"):
        exec(statement, {})


@pytest.mark.parametrize(
    "name", ["IterativeProblem", "HigherIterativeProblem", "MetaIterativeProblem"]
)
def test_iterative_problems_unroll(name: str) -> None:
    with serve():
        kind = getattr(importlib.import_module("betty.problems"), name)
    assert kind(name="inner", config=Config()).hypergradient == Unroll()


def test_logger_is_made_as_the_engine_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve():
        made = importlib.import_module("betty.logging").logger("jsonl")
    made.log({"loss": 1.0}, tag="inner", step=3)
    made.close()
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".jsonl"]


def test_serving_ends_and_leaves_modules_as_they_were() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("betty")}
    finders = list(sys.meta_path)
    with serve(), serve():
        assert importlib.import_module("betty.engine").Engine is Engine
    after = {name: module for name, module in sys.modules.items() if name.startswith("betty")}
    assert after == before
    assert sys.meta_path == finders


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_real_betty_imported_before_is_set_aside_and_comes_back() -> None:
    pytest.importorskip("betty")
    real = importlib.import_module("betty.engine")
    with serve():
        assert importlib.import_module("betty.engine").Engine is Engine
    assert importlib.import_module("betty.engine") is real


def test_what_is_installed_inside_a_with_statement_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "betty"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.meta_path)
    with serve():
        install()
    assert sys.meta_path[1:] == before
    sys.meta_path[:] = before
    with serve():
        pass
    assert sys.meta_path == before


def test_installing_twice_is_installing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "betty"]:
        monkeypatch.delitem(sys.modules, name)
    install()
    finders = list(sys.meta_path)
    install()
    assert sys.meta_path == finders


def shell(*command: str, folder: Path) -> Done:
    """Run ``python -m metaweight.betty`` with ``command`` in ``folder``."""
    return start_module("metaweight.betty", *command, cwd=folder).wait()


PROGRAM = """
import os
import pickle
import sys

import problems
from betty.engine import Engine
from problems import Mine

main = sys.modules["__main__"]
expected = os.path.dirname(os.path.realpath(__file__))

assert Engine.__module__ == "metaweight.engines.engine", Engine
assert issubclass(Mine, Engine)
assert problems.__file__ == os.path.join(expected, "problems.py"), problems.__file__
assert __name__ == "__main__"
assert main.__dict__ is globals()
assert os.path.isabs(__file__)
assert os.path.realpath(sys.path[0]) == expected, sys.path[0]
assert not any("betty" in name and hasattr(m, "__file__") for name, m in sys.modules.items()
               if not name.startswith("metaweight"))


class Kept:
    pass


assert type(pickle.loads(pickle.dumps(Kept()))) is Kept
if __spec__ is None:
    assert sys.argv[0] == "sub/program.py", sys.argv
else:
    assert __spec__.name == "program"
print("arguments:", *sys.argv[1:])
sys.exit(7)
"""

BESIDE = """
from betty.engine import Engine


class Mine(Engine):
    pass
"""


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a folder of its own, and undo what running a program changes in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    with serve():
        yield tmp_path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "program.py").write_text(PROGRAM)
    (tmp_path / "sub" / "problems.py").write_text(BESIDE)
    return tmp_path


@pytest.mark.slow
def test_program_runs_as_python_would_run_it(project: Path) -> None:
    asked = ("-m", "metaweight.betty", "sub/program.py", "--lr", "0.1", "-m")
    done = subprocess.run(
        [sys.executable, *asked], cwd=project, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (7, "arguments: --lr 0.1 -m\n"), done.stderr


def test_module_runs_as_python_would_run_it(project: Path) -> None:
    done = shell("-m", "program", "--help", folder=project / "sub")
    assert (done.returncode, done.stdout) == (7, "arguments: --help\n"), done.stderr


def test_failing_program_shows_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("from betty.problems import Problem\nProblem.nothing\n")
    done = shell("program.py", folder=tmp_path)
    assert done.returncode == 1
    assert 'program.py", line 2' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("AttributeError")


def test_folder_with_a_main_runs(confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (confined / "folder").mkdir()
    (confined / "folder" / "beside_it.py").write_text("value = 3\n")
    (confined / "folder" / "__main__.py").write_text("import beside_it\nprint(beside_it.value)\n")
    assert main(["folder"]) == 0
    assert capsys.readouterr().out == "3\n"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["nowhere.py"], "there is no program 'nowhere.py'"),
        (["-m", "nowhere"], "there is no module 'nowhere'"),
        (["-m", "json"], "there is no module 'json' to run"),
        (["-m", "nowhere.below"], "there is no module 'nowhere.below'"),
        (["-m"], "needs the name of a module"),
        (["--unknown", "program.py"], "'--unknown' is not an option"),
        (["."], "has no __main__.py"),
        ([], "no program was given"),
    ],
)
@pytest.mark.usefixtures("confined")
def test_what_cannot_be_run_is_refused_in_one_sentence(
    command: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert said.err.endswith(".\n")


def test_missing_program_ends_the_process_with_two(tmp_path: Path) -> None:
    done = shell("nowhere.py", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "metaweight.betty: there is no program 'nowhere.py'; check its path, or use -m for a "
        "module.\n"
    )


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m metaweight.betty")
