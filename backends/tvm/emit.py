"""A tile program as TVMScript: one function over flat buffers, with a parallel loop over the grid."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from sparsec.backends.tvm.access import load
from sparsec.backends.tvm.expressions import evaluate
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.lanes import Lanes
from sparsec.backends.tvm.names import safe, stride_name
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.regions import emit_region
from sparsec.backends.tvm.stages import Decisions, decide
from sparsec.backends.tvm.text import Writer, grouped
from sparsec.tile.build import TileError, reachable
from sparsec.tile.language import Access, Program, Tensor, TileOp
from sparsec.tile.schedule import Schedule

MEMORY = {"bfloat16": "int16"}
"""Buffers of bfloat16 are passed as their bits."""


def emit(program: Program, schedule: Schedule) -> str:
    """Program and schedule in, TVMScript source out; the same text for the same input.

    The function takes the tensors as flat buffers, then the params, then an int64 stride for every dimension but the
    last of every tensor. Raises TileError for what the CPU cannot do.
    """
    _refuse(program)
    kernel = _kernel(program, schedule, decide(program, Lanes(schedule), schedule.accumulators))
    emit_region(kernel, -1, [])
    lines = _function(program, schedule, kernel)
    mark = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return "\n".join([*_header(program, schedule, mark), *lines]) + "\n"


def _kernel(program: Program, schedule: Schedule, found: Decisions) -> Kernel:
    """An empty kernel that knows its place in the grid."""
    kernel = Kernel(program, schedule, found, Writer(), load)
    for node in reachable(program.effects):
        if node.op is TileOp.PROGRAM_ID:
            kernel.remember(node, Point(), f"program{node.attrs[0]}")
    return kernel


def _function(program: Program, schedule: Schedule, kernel: Kernel) -> list[str]:
    """The function around the statements of one grid point."""
    head = Writer()
    head.line("@T.prim_func(s_tir=True)")
    with head.block(_signature(program)):
        head.line('T.func_attr({"tirx.noalias": True})')
        for tensor in program.tensors:
            name = safe(tensor.name)
            head.line(f"{name}_n0 = T.int64()")
            dtype = MEMORY.get(tensor.dtype, tensor.dtype)
            head.line(f'{name} = T.match_buffer({name}_data0, ({name}_n0,), "{dtype}")')
        extents = [f"grid{k}" for k in range(len(program.grid))]
        for name, text in zip(extents, _grid(program, schedule, kernel), strict=True):
            head.line(f"{name}: T.let = {text}")
        loop = "T.serial" if _adds(program) else "T.parallel"
        with head.block(f"for task in {loop}({' * '.join(extents)}):"):
            for k, text in enumerate(_program_ids(extents)):
                head.line(f"program{k}: T.let = {text}")
            for line in (*kernel.allocations.values(), *kernel.out.lines):
                head.line(line)
    return head.lines


def _grid(program: Program, schedule: Schedule, kernel: Kernel) -> list[str]:
    """The extents of the grid, from params alone."""
    nothing = Decisions(kernel.found.lanes, kernel.found.regions, {}, set(), defaultdict(list), {})
    outside = Kernel(program, schedule, nothing, Writer(), load)
    return [evaluate(outside, node, Point()) for node in program.grid]


def _header(program: Program, schedule: Schedule, mark: str) -> list[str]:
    lanes = " ".join(schedule.lanes)
    return [
        f"# {program.name}, {mark}",
        f"# lanes {lanes}; vectors of {schedule.vector} floats; {schedule.accumulators} accumulators",
    ]


def _signature(program: Program) -> str:
    buffers = [f"{safe(t.name)}_data0: T.handle" for t in program.tensors]
    params = [f"{safe(name)}: T.{dtype}" for name, dtype in program.params]
    return f"def main({', '.join(buffers + params + [f'{s}: T.int64' for s in _strides(program.tensors)])}):"


def _strides(tensors: tuple[Tensor, ...]) -> list[str]:
    return [stride_name(t.name, d) for t in tensors for d in range(t.rank - 1)]


def _program_ids(extents: list[str]) -> list[str]:
    """The grid position of a task, the first dimension fastest."""
    lines, rest = [], "task"
    for extent in extents[:-1]:
        lines.append(f"T.truncmod({rest}, {extent})")
        rest = f"T.truncdiv({grouped(rest)}, {extent})"
    return [*lines, rest]


def _adds(program: Program) -> bool:
    """Whether programs add to each other's memory: they then run one after the other."""
    stores = [n.attrs[0] for n in reachable(program.effects) if n.op is TileOp.STORE]
    return any(isinstance(how, Access) and how.atomic for how in stores)


def _refuse(program: Program) -> None:
    """What the CPU back end cannot print, in one sentence."""
    accesses = [(n.op, n.attrs[0]) for n in reachable(program.effects) if n.op in (TileOp.LOAD, TileOp.STORE)]
    loaded = {a.tensor.name for op, a in accesses if op is TileOp.LOAD and isinstance(a, Access)}
    for op, how in accesses:
        assert isinstance(how, Access)
        if op is TileOp.STORE and how.tensor.name in loaded:
            raise TileError(f"{program.name}: {how.tensor.name} is both read and written; write to another tensor")
