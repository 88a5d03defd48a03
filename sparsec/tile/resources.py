"""What a tile program needs of a GPU, estimated before it is compiled: shared memory and registers.

Loads that feed a dot inside a loop are copied to shared memory ahead of their use, once per pipeline stage; loops that
follow one another share the room. Values carried around a loop and the largest product inside it are in registers
together. Both are lower bounds of what a compiler can do, so what they refuse would not have run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsec.tile.language import LoopBody, Node, Program, TileOp
from sparsec.tile.regions import TOP, Regions, body_of, regions
from sparsec.tile.schedule import Schedule

BYTES = {"bool": 1, "float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}
MOST_REGISTERS = 255
LANES = 32
_SAME_PLACE = (TileOp.CAST, TileOp.RENAME, TileOp.MASK_IF)


@dataclass(frozen=True, slots=True)
class Needs:
    """What one program needs at least.

    Attributes:
        shared: bytes of shared memory for pipelined loads.
        registers: 32-bit registers per thread for carried values and the largest product.
    """

    shared: int
    registers: int


def needs(program: Program, schedule: Schedule) -> Needs:
    """Lower bounds for a program compiled with the warps and stages of a schedule."""
    found = regions(program)
    operands = _operands(found)
    loops = [n for n in found.nodes[TOP] if n.op is TileOp.LOOP]
    shared = max((_shared(loop, found, operands, schedule) for loop in loops), default=0)
    every = [n for nodes in found.nodes.values() for n in nodes if n.op is TileOp.LOOP]
    values = max((_values(body_of(loop), found) for loop in every), default=0)
    return Needs(shared, math.ceil(values / (LANES * schedule.warps)))


def refusal(program: Program, schedule: Schedule, shared: int) -> tuple[str, str] | None:
    """Why a program cannot run where one may use ``shared`` bytes: what it lacks, and a sentence; None if it may."""
    found = needs(program, schedule)
    if found.shared > shared:
        said = f"{program.name} needs at least {found.shared} bytes of shared memory of {shared}"
        return "shared memory", f"{said}; use smaller blocks or fewer stages than {schedule.stages}"
    limit = min(schedule.registers or MOST_REGISTERS, MOST_REGISTERS)
    if found.registers > limit:
        said = f"{program.name} needs at least {found.registers} registers a thread of {limit}"
        return "registers", f"{said}; use smaller tiles or more warps than {schedule.warps}"
    return None


def _operands(found: Regions) -> frozenset[int]:
    """The loads that are operands of dots, by serial number."""
    loads: set[int] = set()
    for node in (n for nodes in found.nodes.values() for n in nodes if n.op is TileOp.DOT):
        for operand in node.args[:2]:
            while operand.op in _SAME_PLACE:
                operand = operand.args[2] if operand.op is TileOp.MASK_IF else operand.args[0]
            if operand.op is TileOp.LOAD:
                loads.add(operand.serial)
    return frozenset(loads)


def _shared(loop: Node, found: Regions, operands: frozenset[int], schedule: Schedule) -> int:
    """Bytes that a loop's dot operands take in all stages; the loops inside it share what is left."""
    body = body_of(loop)
    nodes = found.nodes.get(body.number, ())
    own = sum(_size(n) * BYTES[n.dtype] for n in nodes if n.serial in operands and len(n.axes) == 2)
    inner = [_shared(n, found, operands, schedule) for n in nodes if n.op is TileOp.LOOP]
    return own * max(body.stages or schedule.stages, 1) + max(inner, default=0)


def _values(body: LoopBody, found: Regions) -> int:
    """Elements of two axes that are live together: the carried ones, and a product that is not carried itself."""
    carried = sum(_size(c) for c in body.carries if len(c.axes) == 2)
    passed = {y.serial for y in body.yields}
    dots = [n for n in found.nodes.get(body.number, ()) if n.op is TileOp.DOT and n.serial not in passed]
    return carried + max((_size(n) for n in dots if len(n.args) == 2), default=0)


def _size(node: Node) -> int:
    return math.prod(axis.size for axis in node.axes)
