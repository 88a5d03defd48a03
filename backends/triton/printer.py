"""How the nodes of a tile program become lines of Triton: names, loops, and what is written in place."""

from __future__ import annotations

from typing import cast

from sparsec.backends.triton.access import narrow_stride, store
from sparsec.backends.triton.address import stride_limits
from sparsec.backends.triton.arguments import parameters, pinned
from sparsec.backends.triton.descriptors import Descriptor
from sparsec.backends.triton.expressions import expression
from sparsec.backends.triton.functions import HELPERS, literal
from sparsec.backends.triton.names import Names, hint, merge, state_hint
from sparsec.backends.triton.text import Text, dtype_name, wrapped
from sparsec.backends.triton.uses import LEAVES, Uses, uses
from sparsec.tile.chain import Chain, early
from sparsec.tile.language import Axis, Node, Program, TileOp, access_of
from sparsec.tile.regions import TOP, body_of

_LONGEST_INLINE = 72


class Printer:
    """The state of printing one kernel."""

    def __init__(
        self, program: Program, boxes: dict[int, Descriptor], chain: Chain | None = None, seen: Uses | None = None
    ) -> None:
        self.program, self.chain, self.waited = program, chain, chain is None
        self.early = frozenset[int]()
        self.boxes = boxes
        self.uses = seen or uses(program, frozenset(boxes))
        self.nodes = [n for nodes in self.uses.order.values() for n in nodes]
        self.arguments = parameters(program, self.boxes.values())
        narrow = (narrow_stride(t.name, d) for t in program.tensors for d in range(t.rank))
        self.names = Names([program.name, *self.arguments, *narrow])
        self.named: dict[int, str] = {}
        self.lines: list[str] = []
        self.depth = 1
        self.helpers: set[str] = set()

    def source(self) -> str:
        """The whole file."""
        if self.chain is not None and not self.chain.opens:
            self.line("tl.extra.cuda.gdc_launch_dependents()")
        for node in self.uses.order[TOP]:
            if node.op in (TileOp.PROGRAM_ID, TileOp.IOTA):
                self.assign(node)
        self.narrow_strides()
        self.region(TOP)
        helpers = [HELPERS[name] for name in HELPERS if name in self.helpers]
        body = [text for line in self.lines for text in wrapped(line)]
        return "\n".join(["import triton", "import triton.language as tl", "", *helpers, *self.head(), *body, ""])

    def head(self) -> list[str]:
        """The decorator, the signature and the docstring."""
        fixed = ", ".join(f'"{name}"' for name in pinned(self.program))
        shapes = ", ".join(f"{t.name} {t.dtype}[{', '.join(map(str, t.shape))}]" for t in self.program.tensors)
        arguments = [f"    {name}: {kind}," if kind else f"    {name}," for name, kind in self.arguments.items()]
        decorator = f"@triton.jit(do_not_specialize=[{fixed}])" if fixed else "@triton.jit"
        return ["", decorator, f"def {self.program.name}(", *arguments, "):", f'    """{shapes}."""']

    def narrow_strides(self) -> None:
        """32-bit copies of the strides that move tiles."""
        limits, done = stride_limits(self.program), set()
        for node in (n for n in self.nodes if n.op in (TileOp.LOAD, TileOp.STORE) and n.serial not in self.boxes):
            tensor = access_of(node).tensor
            for dim in (d for d in range(tensor.rank - 1) if node.args[d].axes):
                name = f"{tensor.name}_s{dim}"
                if name in limits and name not in done:
                    done.add(name)
                    self.line(f"{narrow_stride(tensor.name, dim)} = {name}.to(tl.int32)")

    def line(self, text: str) -> None:
        """One line at the current depth."""
        self.lines.append("    " * self.depth + text)

    def region(self, number: int) -> None:
        """The printed nodes of a region."""
        for node in self.ordered(number):
            self.wait(node)
            if node.op is TileOp.STORE:
                self.store(node)
            elif node.op is TileOp.LOOP:
                self.loop(node)
            elif self.wants_a_line(node):
                self.assign(node)

    def ordered(self, number: int) -> tuple[Node, ...]:
        """The printed nodes of a region; of a chain's top, first what needs no wait."""
        nodes = self.uses.order.get(number, ())
        if self.chain is None or self.chain.head or number != TOP:
            return nodes
        self.early = early(self.uses.regions, self.chain)
        return (*(n for n in nodes if n.serial in self.early), *(n for n in nodes if n.serial not in self.early))

    def store(self, node: Node) -> None:
        """A store or an atomic addition."""
        self.line(store(self, node))

    def wait(self, node: Node) -> None:
        """The wait for the launch before, ahead of the first node that may touch what it touches."""
        if self.waited or node.op not in (TileOp.LOAD, TileOp.STORE, TileOp.LOOP):
            return
        assert self.chain is not None
        if node.serial in self.early:
            return
        self.waited = True
        self.line("tl.extra.cuda.gdc_wait()")
        if self.chain.opens:
            self.line("tl.extra.cuda.gdc_launch_dependents()")

    def wants_a_line(self, node: Node) -> bool:
        """Whether a value is printed where it is made."""
        return node.op not in LEAVES and not self.is_inline(node)

    def is_inline(self, node: Node) -> bool:
        """Whether a node is written inside its only reader."""
        return self.uses.inline(node) and len(self.expression(node).text) <= _LONGEST_INLINE

    def assign(self, node: Node) -> None:
        """``name = expression``."""
        text = self.expression(node).text
        self.named[node.serial] = self.names.fresh(self.wanted(node))
        self.line(f"{self.named[node.serial]} = {text}")

    def wanted(self, node: Node) -> str:
        """What to call a value: by what it becomes where it only starts a loop, else by what it is."""
        readers = self.uses.readers.get(node.serial, [])
        if node.op is not TileOp.FULL or len(readers) != 1 or readers[0].op is not TileOp.LOOP:
            return hint(node)
        return state_hint(body_of(readers[0]).yields[readers[0].args.index(node) - 2])

    def text(self, node: Node) -> Text:
        """How readers write a node: its name, a number, or its expression in place."""
        if node.serial in self.named:
            return Text(self.named[node.serial])
        if node.op is TileOp.CONST:
            return Text(literal(node.attrs[0], node.dtype))
        if node.op is TileOp.PARAM:
            return Text(str(node.attrs[0]))
        return self.expression(node)

    def expression(self, node: Node) -> Text:
        """The right-hand side of a node."""
        return expression(self, node)

    def at(self, node: Node, to: tuple[Axis, ...]) -> Text:
        """A node as an operand whose dimensions are the axes ``to``."""
        made = self.text(node)
        if not node.axes or node.axes == to:
            return made
        return Text(f"{made.closed}[{', '.join(':' if axis in node.axes else 'None' for axis in to)}]")

    def loop(self, node: Node) -> None:
        """A counted loop; a carried value is a variable that keeps its name after the loop.

        From 0 to a truth value it is printed as a condition, out of which nothing is moved.
        """
        body, (lo, hi), names = body_of(node), node.args[:2], self.carry(node)
        once = hi.dtype == "bool" and lo.op is TileOp.CONST and lo.attrs[0] == 0
        self.named[body.index.serial] = "0" if once else self.names.fresh("i")
        self.line(f"if {self.text(hi).text}:" if once else self.range_of(node, self.named[body.index.serial]))
        self.depth += 1
        start = len(self.lines)
        self.region(body.number)
        self.next_state(start, names, [self.text(y).text for y in body.yields])
        self.depth -= 1
        self.leave(node, names)

    def carry(self, node: Node) -> list[str]:
        """The variables that a loop carries, which its body knows from here on."""
        body, inits = body_of(node), node.args[2:]
        names = [self.variable(init, node, y) for init, y in zip(inits, body.yields, strict=True)]
        self.named.update({c.serial: name for c, name in zip(body.carries, names, strict=True)})
        return names

    def leave(self, node: Node, names: list[str]) -> None:
        """What is behind a loop knows what it carried by the same names."""
        for result in (r for r in self.nodes if r.op is TileOp.RESULT and r.args[0] is node):
            self.named[result.serial] = names[cast(int, result.attrs[0])]

    def range_of(self, node: Node, index: str) -> str:
        """The head of a counted loop."""
        stages = body_of(node).stages
        over = f"tl.range({self.bounds(node)}, num_stages={stages})" if stages else f"range({self.bounds(node)})"
        return f"for {index} in {over}:"

    def bounds(self, node: Node, start: str = "") -> str:
        """Where a loop starts, or where its first turns end if those stand before it; its end, and its step."""
        body, (lo, hi) = body_of(node), node.args[:2]
        return f"{start or self.bound(lo)}, {self.bound(hi)}" + (f", {body.step}" if body.step > 1 else "")

    def bound(self, node: Node) -> str:
        """A loop bound; a truth value counts as 0 or 1."""
        made = self.text(node)
        return f"{made.closed}.to(tl.int32)" if node.dtype == "bool" else made.text

    def variable(self, init: Node, loop: Node, yielded: Node) -> str:
        """The variable of a carried value: that of its initial value where the loop alone reads it."""
        home, movable = self.uses.regions.home, init.op not in (TileOp.PROGRAM_ID, TileOp.IOTA, TileOp.INDEX)
        alone = self.uses.readers[init.serial] == [loop] and home[init.serial] == home[loop.serial]
        if init.serial in self.named and alone and movable:
            return self.named[init.serial]
        name = self.names.fresh(state_hint(yielded))
        start = self.text(init).text
        self.line(f"{name} = {f'tl.full([], {start}, {dtype_name(init.dtype)})' if init.op is TileOp.CONST else start}")
        return name

    def next_state(self, start: int, names: list[str], values: list[str]) -> None:
        """The end of a body: carried variables take their next values, all at once."""
        pairs = [(n, v) for n, v in zip(names, values, strict=True) if n != v]
        left = [(n, v) for n, v in pairs if values.count(v) > 1 or n in values or not merge(self.lines, start, v, n)]
        if left:
            self.line(f"{', '.join(n for n, _ in left)} = {', '.join(v for _, v in left)}")
        if len(self.lines) == start:
            self.line("pass")
