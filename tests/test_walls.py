"""Who may import whom: the walls that keep the training side, the report side and hydra apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "weight_decay"
FILES = sorted(PACKAGE.rglob("*.py"))
# Layers of DESIGN.md, lowest first: a room may import from its own layer and from those below.
LAYERS = [
    {"errors", "extras", "places", "seeds"},
    {"config"},
    {"runs", "device"},
    {"models", "data", "optim", "probes"},
    {"tasks"},
    {"training"},
    {"library"},
    {"experiments"},
    {"cli"},
    {"__main__", "__init__"},
]
# What the report stands on; it never sees what computes.
BELOW_THE_REPORT = {"errors", "places", "runs", "report"}
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES
}
MOST_FLOORS = 9
"""Modules in a row of which each imports the next: so many files somebody reads to follow one thing to its ground."""


def imports(file: Path) -> set[str]:
    """Full names of all modules imported anywhere in a file, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file.name} uses a relative import; write it in full"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """What of a module is run when it is loaded: neither the insides of functions nor what is for types alone."""
    for child in ast.iter_child_nodes(node):
        types_alone = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not types_alone and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_load(child)


def modules_in(nodes: Iterable[ast.AST]) -> set[str]:
    """Our modules among those that are imported."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in named}
    return found & MODULES.keys()


def longest_chains(imported: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """From each module the longest row of which each imports the next. CycleError names a circle."""
    chains: dict[str, tuple[str, ...]] = {}
    for name in TopologicalSorter(imported).static_order():
        chains[name] = (name, *max((chains[below] for below in sorted(imported[name])), key=len, default=()))
    return chains


def room(name: str) -> str | None:
    """The room of the house a module is in: the first name below the package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "weight_decay" and len(parts) > 1 else None


def rooms_imported(file: Path) -> set[str]:
    """Rooms that a file imports from."""
    return {found for name in imports(file) if (found := room(name)) is not None}


def own_room(file: Path) -> str:
    """The room a file is in."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_hydra_is_imported_only_where_runs_are_launched() -> None:
    roots = {f: {name.split(".")[0] for name in imports(f)} for f in FILES}
    users = {f.relative_to(PACKAGE).parent.as_posix() for f in FILES if roots[f] & {"hydra", "omegaconf"}}
    assert users == {"experiments/launch"}


def test_hydra_is_used_by_its_public_doors() -> None:
    plugins = sorted((PACKAGE.parent / "hydra_plugins").glob("*.py"))
    assert plugins
    for file in [*FILES, *plugins]:
        assert not [name for name in imports(file) if name.startswith("hydra._internal")], file
        assert "sys.argv =" not in file.read_text(), file


def test_wandb_is_imported_only_by_the_record_the_dashboard_and_the_pull() -> None:
    users = {f.relative_to(PACKAGE).as_posix() for f in FILES if "wandb" in {name.split(".")[0] for name in imports(f)}}
    assert "training/record.py" in users
    assert users <= {"training/record.py", "report/wandb/dashboard.py", "report/wandb/pull.py"}


@pytest.mark.parametrize("file", [f for f in FILES if own_room(f) == "report"], ids=lambda f: f.name)
def test_the_report_never_imports_the_training_side(file: Path) -> None:
    assert "torch" not in {name.split(".")[0] for name in imports(file)}
    assert rooms_imported(file) <= BELOW_THE_REPORT


def test_the_report_runs_without_loading_torch() -> None:
    code = (
        "import sys, weight_decay.report.commands, weight_decay.report.figures.gallery; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("file", [f for f in FILES if own_room(f) != "report"], ids=lambda f: f.name)
def test_imports_point_down(file: Path) -> None:
    layer = next(i for i, rooms in enumerate(LAYERS) if own_room(file) in rooms)
    allowed = set().union(*LAYERS[: layer + 1])
    if own_room(file) == "cli":
        allowed.add("report")  # it hands the report's own commands over, unseen
    if file.relative_to(PACKAGE).as_posix() in ("library/tables.py", "__init__.py"):
        allowed.add("report")  # the tables are the report's
    assert rooms_imported(file) <= allowed


def test_the_house_is_not_too_tall() -> None:
    chains = longest_chains({name: modules_in(at_load(ast.parse(file.read_text()))) for name, file in MODULES.items()})
    for chain in chains.values():
        assert len(chain) <= MOST_FLOORS, " > ".join(chain)


def test_no_module_imports_itself_through_others_not_even_inside_functions() -> None:
    try:
        longest_chains({name: modules_in(ast.walk(ast.parse(file.read_text()))) for name, file in MODULES.items()})
    except CycleError as circle:
        pytest.fail(" > ".join(reversed(circle.args[1])))


def test_the_longest_chain_is_found_and_a_circle_is_named() -> None:
    assert longest_chains({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": set()})["a"] == ("a", "b", "c", "d")
    with pytest.raises(CycleError):
        longest_chains({"a": {"b"}, "b": {"a"}})
    source = (
        "import one\nif TYPE_CHECKING:\n    import two\ntry:\n    import three\nfinally: pass\ndef f(): import four"
    )
    imported = [node for node in at_load(ast.parse(source)) if isinstance(node, ast.Import)]
    assert [node.names[0].name for node in imported] == ["one", "three"]


def test_every_file_stays_short() -> None:
    long = {f.name: n for f in FILES if (n := len(f.read_text().splitlines())) > 330}
    assert not long


def test_nothing_a_user_hands_us_is_executed() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), file
        assert not {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & imports(file), file
