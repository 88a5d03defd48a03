"""The state of printing one kernel: source so far, places of stored values, names of values already computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.stages import Decisions
from sparsec.backends.tvm.storage import Stored, cell, place, span
from sparsec.backends.tvm.text import Writer
from sparsec.tile.language import Axis, Node, Program, TileOp
from sparsec.tile.schedule import Schedule

Key = tuple[int, tuple[str, ...]]

HEAVY = 24
"""The longest a name may be, written out. TVM writes names out when it analyses an expression: without a limit, a
logarithm of exponentials compiles for minutes."""


@dataclass(slots=True)
class Kernel:
    """What the printing functions share.

    Attributes:
        load: prints a load; set where the parts are put together.
        trusted: (load, dimension) pairs that are inside their bound for now.
        clamped: pairs whose outside may give any number for now.
    """

    program: Program
    schedule: Schedule
    found: Decisions
    out: Writer
    load: Callable[[Kernel, Node, Point], str]
    stored: dict[int, Stored] = field(default_factory=dict)
    trusted: set[tuple[int, int]] = field(default_factory=set)
    clamped: set[tuple[int, int]] = field(default_factory=set)
    allocations: dict[str, str] = field(default_factory=dict)
    _scopes: list[dict[Key, str]] = field(default_factory=lambda: [{}])
    _count: int = 0
    _weights: dict[str, int] = field(default_factory=dict)

    def fresh(self, stem: str) -> str:
        """A name that has not been used."""
        self._count += 1
        return f"{stem}{self._count}"

    def name(self, node: Node) -> str:
        """The name of a node's value: its operation and serial number."""
        stem = node.attrs[0].value if node.op is TileOp.MAP else node.op.name.lower()  # type: ignore[attr-defined]
        return f"{stem}_{node.serial}"

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """An indented block; names made inside are forgotten after it."""
        self._scopes.append({})
        with self.out.block(header):
            yield
        self._scopes.pop()

    @contextmanager
    def loop(self, extent: int | str, stem: str = "i") -> Iterator[str]:
        """``for name in range(extent)``; a loop that runs once is not printed."""
        if extent == 1:
            self._scopes.append({})
            yield "0"
            self._scopes.pop()
            return
        name = self.fresh(stem)
        with self.block(f"for {name} in range({extent}):"):
            yield name

    def bind(self, text: str, stem: str = "v", dtype: str = "", width: int = 1) -> str:
        """The text under a new name, evaluated here; through a register if it is long and its type is given."""
        if text.isidentifier():
            return text
        name, weight = self.fresh(stem), self._weight(text)
        if dtype and weight > HEAVY:
            held = self.register("held", 0, width, dtype)
            self.out.line(f"{held} = {text}")
            text, weight = held, 1
        self._weights[name] = weight
        self.out.line(f"{name}: T.let = {text}")
        return name

    def _weight(self, text: str) -> int:
        """How long a text is with all names in it written out."""
        return 1 + sum(self._weights.get(name, 0) for name in re.findall(r"[a-z_]\w*", text))

    def recall(self, node: Node, point: Point) -> str | None:
        """The name of a value already computed at this point."""
        key = (node.serial, point.key(node.axes))
        return next((scope[key] for scope in reversed(self._scopes) if key in scope), None)

    def remember(self, node: Node, point: Point, name: str) -> None:
        """``name`` is the value of ``node`` at this point, for the rest of the block."""
        self._scopes[-1][node.serial, point.key(node.axes)] = name

    def allocate(self, name: str, size: int, dtype: str) -> None:
        """A buffer of the kernel; all of them are declared at the top."""
        self.allocations[name] = f'{name} = T.alloc_buffer(({size},), "{dtype}")'

    def register(self, stem: str, number: int, width: int, dtype: str = "float32") -> str:
        """A vector register for short use, shared by all that ask for the same one."""
        shape = f"_x{width}" if width != self.found.lanes.vector else ""
        name = f"{stem}_{number}{shape}{'' if dtype == 'float32' else f'_{dtype}'}"
        self.allocate(name, width, dtype)
        return span(name, "0", width)

    def give_place(self, node: Node, lane: Axis | None) -> Stored:
        """A new place for a node's value."""
        indexed = node.serial in self.found.indexed
        made = place(self.name(node), node.dtype, node.axes, lane, indexed, self.found.lanes)
        for name, size, dtype in made.buffers():
            self.allocate(name, size, cell(dtype))
        self.stored[node.serial] = made
        return made
