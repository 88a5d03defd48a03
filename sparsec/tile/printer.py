"""A program as text: one line per value, loops indented, names stable for the same program."""

from __future__ import annotations

from sparsec.scalar.fn import Fn
from sparsec.tile.language import Access, Axis, Node, Program, TileOp
from sparsec.tile.regions import TOP, Regions, body_of, regions

_INLINE = (TileOp.CONST, TileOp.PARAM, TileOp.PROGRAM_ID, TileOp.IOTA, TileOp.INDEX)


def to_text(program: Program) -> str:
    """The program as ``show --level tile`` prints it."""
    return _Printer(program).text()


class _Printer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.regions: Regions = regions(program)
        live = (n for nodes in self.regions.nodes.values() for n in nodes if n.op not in _INLINE)
        self.numbers = {n.serial: k for k, n in enumerate(sorted(live, key=lambda n: n.serial))}
        self.lines: list[str] = []

    def text(self) -> str:
        tensors = ", ".join(f"{t.name}: {t.dtype}[{', '.join(map(str, t.shape))}]" for t in self.program.tensors)
        params = ", ".join(f"{name}: {dtype}" for name, dtype in self.program.params)
        grid = ", ".join(self.name(g) for g in self.program.grid)
        self.lines.append(f"program {self.program.name}({tensors}; {params}) grid ({grid}) {{")
        self.region(TOP, "  ")
        return "\n".join([*self.lines, "}"]) + "\n"

    def region(self, number: int, indent: str) -> None:
        for node in self.regions.nodes.get(number, ()):
            if node.op is TileOp.LOOP:
                self.loop(node, indent)
            elif node.op is TileOp.STORE:
                self.lines.append(indent + self.call(node))
            elif node.op not in (*_INLINE, TileOp.CARRY):
                self.lines.append(f"{indent}{self.name(node)} = {self.call(node)} : {_type(node)}")

    def loop(self, node: Node, indent: str) -> None:
        body = body_of(node)
        lo, hi, *inits = (self.name(a) for a in node.args)
        stages = f", stages={body.stages}" if body.stages else ""
        self.lines.append(
            f"{indent}for i{body.number} in range({lo}, {hi}, {body.step}{stages}) {{  # {self.name(node)}"
        )
        for carry, init in zip(body.carries, inits, strict=True):
            self.lines.append(f"{indent}  {self.name(carry)} = carry({init}) : {_type(carry)}")
        self.region(body.number, indent + "  ")
        if body.yields:
            self.lines.append(f"{indent}  yield {', '.join(map(self.name, body.yields))}")
        self.lines.append(f"{indent}}}")

    def name(self, node: Node) -> str:
        """How readers of a value name it."""
        if node.op in (TileOp.CONST, TileOp.PARAM):
            return str(node.attrs[0])
        if node.op is TileOp.PROGRAM_ID:
            return f"pid{node.attrs[0]}"
        if node.op is TileOp.IOTA:
            return f"iota({node.axes[0].name})"
        if node.op is TileOp.INDEX:
            return f"i{node.attrs[0]}"
        if node.serial not in self.numbers:  # in the grid only
            return self.call(node)
        return f"%{self.numbers[node.serial]}"

    def call(self, node: Node) -> str:
        """The right-hand side of a line."""
        access = node.attrs[0] if node.attrs else None
        if isinstance(access, Access):
            return self.access(node, access)
        attrs = [_attribute(a) for a in node.attrs if not isinstance(a, Fn)]
        head = access.value if isinstance(access, Fn) else node.op.name.lower()
        return f"{head}({', '.join([*(self.name(a) for a in node.args), *attrs])})"

    def access(self, node: Node, access: Access) -> str:
        """A load or store: ``k[b, n < TK, h, d]``; the bound of a dimension follows its index."""
        rank = access.tensor.rank
        index = [self.name(a) for a in node.args[:rank]]
        for dim, bound in zip(access.bounded, node.args[rank:], strict=False):
            index[dim] += f" < {self.name(bound)}"
        place = f"{access.tensor.name}[{', '.join(index)}]"
        evict = f", evict {access.evict}" if access.evict else ""
        if node.op is TileOp.LOAD:
            return f"load {place}" + (f", else {access.other}" if access.bounded else "") + evict
        return f"{'add' if access.atomic else 'store'} {place}, {self.name(node.args[-1])}{evict}"


def _attribute(value: object) -> str:
    return value.name if isinstance(value, Axis) else str(value)


def _type(node: Node) -> str:
    axes = ", ".join(f"{a.name}={a.size}" for a in node.axes)
    return f"{node.dtype}[{axes}]" if axes else node.dtype
