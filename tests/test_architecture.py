"""Who may import whom: problems know nothing above them, engines know problems only."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.each import for_each

ROOT = Path(__file__).parents[1]
PACKAGES = {"problems": "metaweight.problems", "engines": "metaweight.engines"}
FOLDERS = (*PACKAGES, "metaweight")
# The rooms of each house, lowest first: a room imports those before it, never those after it. Files
# that stand in the house itself are where "" is.
ROOMS: dict[str, tuple[str, ...]] = {
    "problems": (
        *("base", "state", "kernels", "data", "recording", "products", "unrolling"),
        *("hypergradients", "", "persistence", "step", "audit", "setup"),
    ),
    "engines": ("loggers", "program", "distributed", "hooks", "checkpoint", "captured", ""),
}
# The room of the doors where people already train: each module needs a package of its own.
DOORS = "integrations"
# What each folder may import across folders; the uppermost may import everything.
ALLOWED: dict[str, tuple[str, ...]] = {"problems": (), "engines": ("metaweight.problems",)}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = (*PACKAGES.get(parts[0], parts[0]).split("."), *parts[1:])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for folder in FOLDERS for path in files(folder)]
MODULES = {module_name(path): path for path in FILES}


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def statements(body: list[ast.stmt], everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of a module: all of them, or only those made when it is imported."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
            continue
        if not everywhere and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        skipped = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        blocks = ("orelse",) if skipped else ("body", "orelse", "finalbody", "handlers")
        for block in blocks:
            for child in getattr(node, block, []):
                inner = child.body if isinstance(child, ast.ExceptHandler) else [child]
                yield from statements(inner, everywhere)


def imports(path: Path, everywhere: bool = True) -> list[tuple[str, int]]:
    """Return absolute names of imported modules and the number of leading dots of each."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found: list[tuple[str, int]] = []
    for node in statements(ast.parse(path.read_text()).body, everywhere):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                found.append((full if full in MODULES else stem, node.level))
    return found


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of_ours(name: str) -> bool:
    return name.partition(".")[0] in FOLDERS


@for_each((p for p in FILES if folder_of(p) in ALLOWED), ids)
def test_no_arrow_points_up(path: Path) -> None:
    folder = folder_of(path)
    own = PACKAGES[folder]
    for name, _ in imports(path):
        if of_ours(name):
            allowed = (own, *ALLOWED[folder])
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), name


@for_each(FILES, ids)
def test_imports_are_relative_within_a_folder_and_absolute_across(path: Path) -> None:
    folder = folder_of(path)
    for name, level in imports(path):
        if not of_ours(name) or name == module_name(path):
            continue
        target = folder_of(MODULES[name]) if name in MODULES else name
        if target != folder:
            # The facade stands above its parts and may reach them as its own.
            assert level == 0 or module_name(path) == "metaweight", f"{name} is in {target}"
        elif folder in PACKAGES:
            assert level > 0, f"{name} is in the same folder"
        else:
            parts = name.split(".")
            same_part = parts[:2] == module_name(path).split(".")[:2]
            assert level > 0 or not same_part, f"{name} is in the same folder"


def room_of(path: Path) -> str:
    """Return the room a file stands in, or nothing for one in the house itself."""
    return path.relative_to(ROOT).parts[1] if len(path.relative_to(ROOT).parts) > 2 else ""


@pytest.mark.parametrize("folder", ROOMS)
def test_every_room_has_its_place_and_its_sentence(folder: str) -> None:
    rooms = {room_of(path) for path in files(folder)}
    assert rooms == set(ROOMS[folder])
    for room in rooms - {""}:
        sentence = ast.get_docstring(ast.parse((ROOT / folder / room / "__init__.py").read_text()))
        assert sentence and sentence.endswith("."), f"{folder}/{room} does not say what it knows"


@for_each((p for p in FILES if folder_of(p) in ROOMS), ids)
def test_no_arrow_between_rooms_points_up(path: Path) -> None:
    folder = folder_of(path)
    order = ROOMS[folder]
    # The house's own __init__ stands above all of its rooms.
    if path == ROOT / folder / "__init__.py":
        return
    for name, _ in imports(path, everywhere=False):
        target = MODULES.get(name)
        if target is None or folder_of(target) != folder:
            continue
        assert target != ROOT / folder / "__init__.py", f"{name} gathers its rooms"
        assert order.index(room_of(target)) <= order.index(room_of(path)), name


def test_nothing_stands_above_the_doors_of_other_packages() -> None:
    for path in FILES:
        if folder_of(path) != "metaweight" or room_of(path) != DOORS:
            assert not any(n.startswith(f"metaweight.{DOORS}") for n, _ in imports(path)), ids(path)


def test_no_folder_is_imported_by_its_place_instead_of_its_name() -> None:
    for path in FILES:
        for name, level in imports(path):
            assert level or name.split(".")[0] not in PACKAGES, f"{ids(path)}: {name}"


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return some cycle, or nothing."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges[name]):
            found = visit(target, [*trail, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def test_a_cycle_is_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_files_do_not_import_each_other_in_a_circle() -> None:
    # A package's __init__ gathers its files; the circles that matter are between those.
    edges = {
        name: {
            target
            for target, _ in imports(path, everywhere=False)
            if target in MODULES and MODULES[target].name != "__init__.py" and target != name
        }
        for name, path in MODULES.items()
    }
    assert sum(map(len, edges.values())) > 50, "imports were not found"
    assert cycle(edges) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@for_each(MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    if name.endswith("__main__"):
        return
    try:
        assert importlib.import_module(name).__name__ == name
    except ImportError as missing:
        # The package that a door is for may be missing.
        if room_of(MODULES[name]) != DOORS or "pip install 'metaweight[" not in str(missing):
            raise


# Rooms of algorithms, and the files of the house that know what a problem is.
ALGORITHMS = ("products", "unrolling", "hypergradients")
PROBLEMS = {ROOT / "problems" / name for name in ("problem.py", "levels.py", "reweighted.py")}
ALGORITHM_FILES = [p for p in files("problems") if room_of(p) in ALGORITHMS]


@for_each(ALGORITHM_FILES, ids)
def test_no_algorithm_knows_a_problem(path: Path) -> None:
    """Not for types either: what they see is a protocol."""
    everything = ast.walk(ast.parse(path.read_text()))
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in everything:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
            assert not PROBLEMS & {MODULES[n] for n in names if n in MODULES}, ast.unparse(node)


@for_each(ALGORITHM_FILES, ids)
def test_no_algorithm_imports_within_a_function(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lazy = [n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not lazy, f"{node.name}: {ast.unparse(lazy[0])}"


# Each takes seconds to import; who needs one, imports it where it is used.
SLOW = {"sklearn", "scipy", "torchvision", "matplotlib", "accelerate", "wandb", "mlflow", "pandas"}
SLOW |= {"transformers", "lightning"}


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    slow = [
        (ids(path), name)
        for path in FILES
        if room_of(path) not in ("plots", "reweighter", DOORS)
        for name, _ in imports(path, everywhere=False)
        if name.partition(".")[0] in SLOW
    ]
    assert not slow
