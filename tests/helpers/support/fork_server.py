"""Programs in processes of their own, forked from one that has imported torch.

Importing torch and making a first optimizer takes five to ten seconds of a processor; a fork takes
none. The forked process has nothing of the test's own process: it reads its arguments, environment
and folder like a new one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = ("metaweight.weighting", "torch._dynamo")
SECONDS = 300


class Done(NamedTuple):
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """A process that runs a program, and leads a process group of its own."""

    def __init__(self, process: Any, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.process = process
        self._folder = folder

    def wait(self, seconds: float = SECONDS) -> Done:
        """Return what the process left at its end; end it after so many seconds."""
        self.process.join(seconds)
        if late := self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        with self._folder as folder:
            said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
        assert not late, f"no end within {seconds} s: {said[1]}"
        return Done(self.process.exitcode, *said)


def context() -> Any:
    """Return the context of processes forked from a server."""
    found: Any = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(PRELOADED))
    return found


def start_module(name: str, *arguments: str, **place: Any) -> Started:
    """Start ``python -m name arguments``; for ``place`` see :func:`start`."""
    return start(_run_module, name, arguments, **place)


def start_code(source: str, *arguments: str, **place: Any) -> Started:
    """Start ``python -c source arguments``; for ``place`` see :func:`start`."""
    return start(_run_code, source, arguments, **place)


def start(
    run: Callable[[str, tuple[str, ...]], None],
    program: str,
    arguments: tuple[str, ...],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] = os.environ,
) -> Started:
    """Start a program in a folder and an environment: by default those of this process."""
    folder = tempfile.TemporaryDirectory()
    process = context().Process(
        target=_child,
        args=(run, program, arguments, str(cwd or Path.cwd()), dict(env), folder.name),
    )
    process.start()
    return Started(process, folder)


def _child(
    run: Callable[[str, tuple[str, ...]], None],
    program: str,
    arguments: tuple[str, ...],
    cwd: str,
    env: dict[str, str],
    folder: str,
) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.setsid()
    # Workers of loaders are started as they are in a new process, not by a server of their own.
    multiprocessing.set_start_method(None, force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    run(program, arguments)


def _run_module(name: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [name, *arguments]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_code(source: str, arguments: tuple[str, ...]) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
