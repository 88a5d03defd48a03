"""Who may import whom. The table is the architecture; the test walks every import, late and dynamic ones included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each layer, and the layers right under it; what those may import, it may import too. Lowest first.
UNDER: dict[str, tuple[str, ...]] = {
    "scalar": (),
    "ir": ("scalar",),
    "tile": ("scalar",),
    "oracle": ("ir",),
    "passes": ("ir",),
    "frontends": ("ir",),
    "plan": ("passes",),
    "lower": ("plan", "tile"),
    "backends": ("tile",),
    "runtime": ("passes", "plan", "lower", "backends"),
    "autotune": ("runtime", "oracle", "tile"),
}
# The public face and what is built on it: free to import anything, imported by nothing above.
FREE = {"cli", "testing", "benchmarks", "compat", "nn", "sparsec"}
# `.tune()` reaches the tuner by one late import, the only one that points upward.
UPWARD = ("runtime", "autotune")
# Libraries that one file alone may import.
ALONE = {"optuna": "sparsec.autotune.study"}

DOTTED = re.compile(r"sparsec(\.\w+)+")


@dataclass(frozen=True)
class Import:
    """One import of a module by a module."""

    importer: str
    target: str
    line: int
    late: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    folders = [ROOT / "sparsec", *(path for path in (ROOT / "sparsec").iterdir() if path.is_symlink())]
    found = [path for folder in folders for path in folder.rglob("*.py")]
    names = (path.relative_to(ROOT).with_suffix("").parts for path in found)
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in zip(names, found, strict=True)}


MODULES = modules()


def layer(module: str) -> str:
    """The second part of a module's name if that is a layer; the root's own files are `sparsec`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in UNDER.keys() | FREE else "sparsec"


def targets(node: ast.AST) -> Iterator[str]:
    """Modules that a node imports, a dotted name in a string included: that is how modules are loaded by name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            longer = f"{node.module}.{alias.name}"
            yield longer if longer in MODULES else node.module
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
        yield node.value


def walk(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it runs only when a function is called."""
    for child in ast.iter_child_nodes(node):
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, inside)


def imports(module: str) -> Iterator[Import]:
    """Every import of one module."""
    for node, late in walk(ast.parse(MODULES[module].read_text())):
        for target in targets(node):
            yield Import(module, target, getattr(node, "lineno", 0), late)


def below(name: str) -> set[str]:
    """Every layer that a layer may import."""
    return {name}.union(*(below(under) for under in UNDER[name]))


def is_legal(found: Import) -> bool:
    """Whether the table allows an import."""
    importer, target = layer(found.importer), layer(found.target)
    return importer in FREE or target in below(importer) or (found.late and (importer, target) == UPWARD)


EVERY = [found for module in sorted(MODULES) for found in imports(module)]
OURS = [found for found in EVERY if found.target.split(".")[0] == "sparsec"]


@pytest.mark.parametrize("name", [*UNDER, *sorted(FREE)])
def test_imports_point_downward(name: str) -> None:
    assert [str(found) for found in OURS if layer(found.importer) == name and not is_legal(found)] == []


def test_one_import_points_upward() -> None:
    upward = [str(found) for found in OURS if (layer(found.importer), layer(found.target)) == UPWARD]
    assert len(upward) <= 1, upward


def test_every_folder_is_in_the_table() -> None:
    folders = {path.name for path in (ROOT / "sparsec").iterdir() if (path / "__init__.py").exists()}
    assert folders == UNDER.keys() | FREE - {"sparsec"}


def test_some_libraries_have_one_door() -> None:
    wrong = [found for found in EVERY if ALONE.get(found.target.split(".")[0], found.importer) != found.importer]
    assert [str(found) for found in wrong] == []


@pytest.mark.parametrize(
    ("importer", "target", "late", "legal"),
    [
        ("sparsec.lower.tiled.forward", "sparsec.ir.node", False, True),
        ("sparsec.passes.run", "sparsec.oracle", False, False),
        ("sparsec.oracle.attend", "sparsec.passes", True, False),
        ("sparsec.scalar.trace", "sparsec", False, False),
        ("sparsec.runtime.compiled", "sparsec.autotune.tune", True, True),
        ("sparsec.runtime.compiled", "sparsec.autotune.tune", False, False),
    ],
)
def test_the_rule_itself(importer: str, target: str, late: bool, legal: bool) -> None:
    assert is_legal(Import(importer, target, 1, late)) is legal
