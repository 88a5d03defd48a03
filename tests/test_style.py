"""The project's habits, enforced: short functions, short files, docstrings, and no trace of anybody's machine."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ("sparsec", "frontends", "backends", "autotune", "benchmarks")
FOLDERS = (*PACKAGE, "tests", "examples", "docs", "constraints", "scripts", ".ci")
TEXT = {".py", ".md", ".txt", ".toml", ".sh", ".sparsec", ""}
LONGEST_FUNCTION = 60
LONGEST_FILE = 300
JUNK_DRAWERS = {"utils", "util", "helpers", "common", "misc"}

# Absolute paths of a developer's machine, hosts of package registries, and talk about how the work was organised.
FOREIGN = re.compile(
    r"(?<![\w.}])/(?:home|root|work|tmp|Users)/\w|\b(?:this|the) [s]ession\b|\b[s]andbox|[f]irecracker"
    r"|\b(?:pypi|pythonhosted|pytorch)\.org/(?:simple|whl|packages)",
    re.IGNORECASE,
)
UNOWNED_TODO = re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX)\b(?!.*#\d)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    """Every text file of the project, each once, without the links."""
    inside = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    found = [path for path in (*sorted(ROOT.glob("*")), *inside) if path.is_file() and path.suffix in TEXT]
    return [path for path in found if not any(parent.is_symlink() for parent in (path, *path.parents))]


def name(path: Path) -> str:
    """A file's path as a reader of the failure looks for it."""
    return str(path.relative_to(ROOT))


PYTHON = [path for path in files() if path.suffix == ".py"]
INSTALLED = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in PACKAGE]


@functools.cache
def parse(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[Function]:
    """Every function, method and nested function of a file."""
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def public(path: Path) -> Iterator[ast.ClassDef | Function]:
    """Public classes and functions of a module; methods are left to their names."""
    nodes = (node for node in parse(path).body if isinstance(node, ast.ClassDef | Function))
    return (node for node in nodes if not node.name.startswith("_"))


def is_overload(node: ast.ClassDef | Function) -> bool:
    """An overload's docstring is its implementation's."""
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)


def test_functions_are_short() -> None:
    spans = [(path, node, (node.end_lineno or 0) - node.lineno + 1) for path in PYTHON for node in functions(path)]
    assert [f"{name(path)}:{node.name}: {span}" for path, node, span in spans if span > LONGEST_FUNCTION] == []


def test_files_are_short() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in PYTHON}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_every_module_says_what_it_is() -> None:
    assert [name(path) for path in PYTHON if not ast.get_docstring(parse(path))] == []


def test_public_functions_and_classes_have_docstrings() -> None:
    nodes = [(path, node) for path in INSTALLED for node in public(path) if not ast.get_docstring(node)]
    assert [f"{name(path)}:{node.name}" for path, node in nodes if not is_overload(node)] == []


@pytest.mark.parametrize("pattern", [FOREIGN, UNOWNED_TODO], ids=["foreign", "unowned to-do"])
def test_no_line_says(pattern: re.Pattern[str]) -> None:
    lines = [(path, line) for path in files() for line in path.read_text().splitlines()]
    assert [f"{name(path)}: {line.strip()}" for path, line in lines if pattern.search(line)] == []


def test_no_module_is_a_junk_drawer() -> None:
    assert [name(path) for path in INSTALLED if path.stem in JUNK_DRAWERS] == []
