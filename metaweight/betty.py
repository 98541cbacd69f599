"""Run a program written for Betty, unchanged, on metaweight.

``python -m metaweight.betty program.py --its --own arguments`` runs a program as ``python`` would,
with one difference: ``import betty…`` finds metaweight's classes under Betty's names. Betty need
not be installed, and an installed one is not imported. From Python, :func:`install` does the same
for the rest of the process and :func:`serve` for the length of a ``with`` statement::

    >>> with serve():
    ...     from betty.engine import Engine
    >>> Engine.__module__
    'metaweight.engines.engine'

What differs from Betty 0.2.1:

* A ``Config`` or ``EngineConfig`` is checked when it is made and frozen afterwards.
* Hypergradients have no side effects: parameters, batch-norm statistics and random streams are the
  same after one as before it, and what a loss detaches stays detached.
* Optimizers, schedulers and loaders are used as given and never rebuilt.
* ``IterativeProblem`` and its relatives differentiate exactly through their optimizer steps, at
  constant memory; in Betty 0.2.1 they fail.
* Betty's inner workings (``betty.utils``, ``betty.hypergradient``, ``betty.patch`` and so on) are
  not served; importing them raises an ``ImportError`` that lists the modules that are.

In worker processes that are forked, all this holds too. Workers started by ``spawn`` or
``forkserver`` import the program again; call :func:`install` at its top for them.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import runpy
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

from metaweight.engines import EarlyStopping, Engine, EngineConfig, Env, RunLogger
from metaweight.engines.loggers import console, make_run_logger
from metaweight.problems import Config, ImplicitProblem, IterativeProblem, Problem

USAGE = """\
usage: python -m metaweight.betty [-h] (-m MODULE | PROGRAM) [argument ...]

Run a program written for Betty, unchanged, on metaweight: `import betty...` in it finds
metaweight's classes under Betty's names. Everything after the program is given to it.

  PROGRAM     path of a Python program, or of a folder or zip file with a __main__.py
  -m MODULE   run a module, as `python -m` does
  -h, --help  show this text
"""


def logger(logger_type: str = "none") -> RunLogger:
    """Return a logger as ``EngineConfig(logger_type=...)`` makes it."""
    settings = EngineConfig(logger_type=logger_type)
    return make_run_logger(settings.logger_types, settings.log_dir)


SERVED: Mapping[str, Mapping[str, Any]] = {
    "betty": {"__version__": "0.2.1"},
    "betty.configs": {"Config": Config, "EngineConfig": EngineConfig},
    "betty.engine": {"Engine": Engine},
    "betty.envs": {"Env": Env},
    "betty.logging": {"LoggerBase": RunLogger, "get_logger": console, "logger": logger},
    "betty.misc": {},
    "betty.misc.early_stopping": {"EarlyStopping": EarlyStopping},
    "betty.problems": {
        "HigherIterativeProblem": IterativeProblem,
        "ImplicitProblem": ImplicitProblem,
        "IterativeProblem": IterativeProblem,
        "MetaIterativeProblem": IterativeProblem,
        "Problem": Problem,
    },
}
"""Names that can be imported, by module of Betty."""


class _Door(MetaPathFinder, Loader):
    """Imports ``betty`` and its submodules from the names in :data:`SERVED`, and nothing else.

    Attributes:
        stays: Whether it is for the rest of the process.
    """

    stays = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        del path, target
        if not _is_betty(fullname):
            return None
        if fullname not in SERVED:
            # Not a ModuleNotFoundError: `from betty.problems import Unknown` asks for a module of
            # that name too, and replaces that error by one whose message does not help.
            raise ImportError(
                f"metaweight does not serve {fullname!r}. Of Betty it serves {_contents()}.",
                name=fullname,
            )
        return ModuleSpec(fullname, self, origin=__name__, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        del spec

    def exec_module(self, module: ModuleType) -> None:
        names = SERVED[module.__name__]
        module.__doc__ = f"Names of {module.__name__}, served by metaweight."
        vars(module).update(names, __all__=[n for n in names if not n.startswith("_")])


_DOOR = _Door()


def install() -> None:
    """Serve Betty's modules for the rest of the process.

    When the real ``betty`` was imported before, it is removed from ``sys.modules``: later imports
    find metaweight, while classes imported earlier stay Betty's. Calling this again changes
    nothing.
    """
    _DOOR.stays = True
    if _DOOR not in sys.meta_path:
        _set_aside()
        sys.meta_path.insert(0, _DOOR)


@contextmanager
def serve() -> Iterator[None]:
    """Serve Betty's modules inside the ``with`` statement, and undo it afterwards, unless
    :func:`install` was called inside."""
    if _DOOR in sys.meta_path:
        yield
        return
    real = _set_aside()
    _DOOR.stays = False
    sys.meta_path.insert(0, _DOOR)
    try:
        yield
    finally:
        if not _DOOR.stays:
            sys.meta_path.remove(_DOOR)
            _set_aside()
            sys.modules.update(real)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program named on the command line and return an exit code.

    The program's own exceptions, ``SystemExit`` among them, pass through.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not given:
        return _refuse("no program was given; name one, or see --help")
    if given[0] == "-m":
        return _run_module(given[1:])
    if given[0].startswith("-"):
        return _refuse(f"{given[0]!r} is not an option; options of the program go after its name")
    return _run_program(given)


def _run_program(argv: list[str]) -> int:
    program = argv[0]
    if os.path.isdir(program) and not os.path.exists(os.path.join(program, "__main__.py")):
        return _refuse(f"the folder {program!r} has no __main__.py; name a Python program")
    if not os.path.exists(program):
        return _refuse(f"there is no program {program!r}; check its path, or use -m for a module")
    install()
    sys.argv = argv
    holds_program = os.path.isdir(program) or zipfile.is_zipfile(program)
    _set_first_path(None if holds_program else os.path.dirname(os.path.realpath(program)))
    if holds_program or program.endswith(".pyc"):
        runpy.run_path(os.path.abspath(program), run_name="__main__")
    else:
        _run_file(os.path.abspath(program))
    return 0


def _run_file(path: str) -> None:
    """Run a source file in a ``__main__`` like the interpreter's own.

    ``runpy.run_path`` would make ``__file__`` and ``sys.argv[0]`` the same text, where Python makes
    the first absolute and leaves the second as typed.
    """
    source = SourceFileLoader("__main__", path)
    module = ModuleType("__main__")
    vars(module).update(__file__=path, __loader__=source, __builtins__=builtins)
    code = source.source_to_code(source.get_data(path), path)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _run_module(argv: list[str]) -> int:
    if not argv:
        return _refuse("-m needs the name of a module")
    install()
    sys.argv = argv
    _set_first_path(os.getcwd())
    if not _can_run(argv[0]):
        return _refuse(
            f"there is no module {argv[0]!r} to run; check its name and that it can be imported "
            f"from {os.getcwd()}"
        )
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    return 0


def _can_run(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return False
    return spec is not None


def _set_first_path(folder: str | None) -> None:
    """Put ``folder`` where Python put the folder it started in, unless it was told not to."""
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[:1] = [] if folder is None else [folder]


def _set_aside() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _is_betty(name)}


def _is_betty(name: str) -> bool:
    return name == "betty" or name.startswith("betty.")


def _contents() -> str:
    return ", ".join(f"{module} ({', '.join(names)})" for module, names in SERVED.items() if names)


def _refuse(reason: str) -> int:
    print(f"metaweight.betty: {reason}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    # Import the module by its own name, so that a program which imports it has the same finder.
    from metaweight.betty import main as run

    sys.exit(run())
