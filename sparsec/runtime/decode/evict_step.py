"""What a decode step of LoLA computes: attention over memory of a fixed size, and a state, under one normaliser."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.ir import build
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant, variant
from sparsec.plan.evict import given_up, lag
from sparsec.scalar.expr import Expr, var

JOINT = (
    "x0 * sigmoid(x1 - log(maximum(x3, 1e-30)))"
    " + x2 / maximum(x3, 1e-30) * (1.0 - sigmoid(x1 - log(maximum(x3, 1e-30))))"
)
"""Of an output x0 with log-sum-exp x1, and a sum x2 of weights x3."""
HELD = ("place", "m", "z", "no_key", "no_value")
"""Inputs of a step beside the variant's: tokens of rows, -1 for none; the state and its mass; a write of nothing."""


@dataclass(frozen=True, slots=True)
class Form:
    """A variant that evicts: its exact and its linear attention, what gives pairs up, and after how many chunks."""

    exact: Node
    linear: Node
    node: Node
    lag: int

    @property
    def names(self) -> dict[str, str]:
        """The inputs' names: q, k, v, and features fq and fk."""
        parts = {"q": self.exact.src[0], "fq": self.linear.src[0], "fk": self.node.src[0], "v": self.node.src[1]}
        return {part: str(x["name"]) for part, x in {**parts, "k": self.exact.src[1].src[0]}.items()}


def evicts(graph: Variant) -> bool:
    """Whether a variant gives pairs up."""
    return any(node.op is Op.EVICT for node in graph.nodes)


def form_of(graph: Variant) -> Form:
    """The parts of a variant that evicts. Raises DeclarationError where a step has another form than LoLA's."""
    (out,) = graph.outputs if len(graph.outputs) == 1 else (None,)
    if out is not None and out.op is Op.MERGE and out["fn"] == "lse" and len(out.src) == 2:
        exact, linear = out.src
        node = given_up(linear) if linear.op is Op.ATTEND else None
        behind = None if node is None else lag(linear, node)
        if node is not None and behind is not None and _is_exact(exact, node, behind):
            return Form(exact, linear, node, behind)
    name = next(node for node in graph.nodes if node.op is Op.EVICT)
    what = "attention over inputs that are held, and the state of the others, merged by lse"
    raise DeclarationError(
        f"{graph.name}, {graph.names[name]}", "evict", f"it decodes as {what}", "give features as inputs"
    )


def _is_exact(attend: Node, node: Node, behind: int) -> bool:
    """Whether an attend reads what is held, of inputs alone."""
    if attend.op is not Op.ATTEND or len(attend.positional) != 3 or attend.src[1].op is not Op.TOKENS:
        return False
    q, memory, mask = attend.positional
    if mask.op is not Op.MASK or list(mask.captures.values()) != [node] or memory.src[1] is not node.src[1]:
        return False
    inputs = all(x.op is Op.INPUT for x in (q, *memory.src, *node.src))
    (name,), size = mask.captures, node.integer("size")
    mine = f"{name}[b, j, h * ({node.shape[2]}) // ({q.shape[2]})]"
    shown = build.mask(memory, where=f"(j <= i) & ({mine} >= i // {size} - {behind})", **{name: node})
    plain = build.attend(q, memory, shown, scale=attend.expr("scale"))
    return inputs and plain is attend


def step_variant(form: Form, name: str) -> Variant:
    """New queries ``[B,TQ,H,·]`` over memory ``[B,TK,HKV,·]`` and a state; ``HELD`` are inputs too."""
    q, fq = (_input(form, part, var("TQ")) for part in ("q", "fq"))
    k, v = (_input(form, part, var("TK")) for part in ("k", "v"))
    b, _, heads, features = form.node.src[0].shape
    place = build.input("place", (b, var("TK"), heads), "int32")
    memory = build.tokens(k, v)
    mine = f"place[b, j, h * ({heads}) // ({q.shape[2]})]"
    shown = build.mask(memory, where=f"(0 <= {mine}) & ({mine} <= i)", place=place)
    exact = build.attend(q, memory, shown, scale=form.exact.expr("scale"))
    key = build.input("no_key", (b, var("TQ"), heads, features), "float32")
    columns = form.node.src[1].shape[3]
    sums = []
    for what, wide in (("m", columns), ("z", 1)):
        first = build.input(what, (b, 1, heads, features, wide), "float32")
        value = build.input("no_value" if what == "m" else "no_one", (b, var("TQ"), heads, wide), "float32")
        sums.append(recall(fq, write(state(first, heads=heads, rows=features, cols=wide), key, value)))
    return variant(f"{name}_step", build.map(exact, build.lse(exact), *sums, fn=JOINT, align="heads"))


def _input(form: Form, part: str, length: Expr) -> Node:
    nodes = {"q": form.exact.src[0], "fq": form.linear.src[0], "k": form.exact.src[1].src[0], "v": form.node.src[1]}
    shape = nodes[part].shape
    return build.input(form.names[part], (shape[0], length, *shape[2:]), nodes[part].dtype)
