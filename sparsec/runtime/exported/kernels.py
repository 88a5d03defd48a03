"""The kernels and host functions of an exported file: sources as they are printed, shared functions once."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from types import ModuleType

from sparsec.runtime.exported.module import Exported
from sparsec.runtime.launch import source


def kernels_text(file: Exported) -> str:
    """Every kernel's source: Triton functions with shared helpers once, TVM sources as named texts."""
    if file.target.backend == "tvm":
        return "\n\n".join(f'{s.program.name.upper()} = """\n{source(s, file.target)}"""' for s in file.steps)
    return merged([part for s in file.steps for part in functions_of(source(s, file.target))])


def host_text(file: Exported) -> str:
    """The functions around the kernels, as they stand in sparsec's own source."""
    return merged([part for module, only in _modules(file) for part in parts_of(module, only)])


def host_imports(file: Exported) -> list[str]:
    """What those functions import, as far as their text names it."""
    text = host_text(file)
    found = {line for module, _ in _modules(file) for line in imports_of(module)}
    used = {line for line in found if re.search(rf"\b{line.split()[-1]}\b", text)}
    return sorted({*used, "import sys", "import torch", "from torch import Tensor"})


def _modules(file: Exported) -> list[tuple[ModuleType, frozenset[str]]]:
    """The modules whose text is copied, and the names that are needed of those that are not copied whole."""
    from sparsec.runtime.exported import host_packed

    everything: frozenset[str] = frozenset()
    if any(kernel.packed is not None for kernel, _ in file.kernels):
        return [*_of_backend(file), (host_packed, everything)]
    return _of_backend(file)


def _of_backend(file: Exported) -> list[tuple[ModuleType, frozenset[str]]]:
    from sparsec.runtime.exported import host

    everything: frozenset[str] = frozenset()
    if file.target.backend == "triton":
        from sparsec.runtime.exported import host_triton

        return [(host, everything), (host_triton, everything)]
    from sparsec.backends.tvm import build, pipeline, threads
    from sparsec.runtime.exported import host_tvm

    flat = frozenset({"SLACK", "flat"})
    return [(threads, everything), (pipeline, everything), (build, flat), (host, everything), (host_tvm, everything)]


def parts_of(module: ModuleType, only: frozenset[str]) -> Iterator[str]:
    """The constants and functions of a module in order, as written; all of them where ``only`` is empty."""
    text = inspect.getsource(module)
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign) and (not only or _name(node) in only):
            yield _segment(node, lines)


def _name(node: ast.FunctionDef | ast.Assign | ast.AnnAssign) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)


def _segment(node: ast.stmt, lines: Sequence[str]) -> str:
    """A statement's text with its decorators."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    return "\n".join(lines[first : node.end_lineno])


def imports_of(module: ModuleType) -> Iterator[str]:
    """The imports at a module's top that are neither ours nor about annotations."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in ("sparsec", "__future__"):
            wanted = [a for a in node.names if a.name != "TYPE_CHECKING"]
            yield from (f"from {node.module} import {a.name}" for a in wanted if node.module != "collections.abc")


def functions_of(text: str) -> list[str]:
    """The top-level functions of a source with their decorators."""
    lines = text.splitlines()
    return [_segment(node, lines) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]


def merged(parts: Sequence[str]) -> str:
    """Parts under one another, each text once; two things of one name and different text are our mistake."""
    done: dict[str, str] = {}
    for part in parts:
        text = part.strip("\n")
        node = ast.parse(text).body[-1]
        name = _name(node) if isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign) else text
        assert done.setdefault(name, text) == text, f"two different functions are called {name}"
    return "\n\n\n".join(done.values())
