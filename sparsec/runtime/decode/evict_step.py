"""What a decode step of LoLA computes: attention over memory of a fixed size, and a state, under one normaliser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from sparsec.ir import build
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.lower.decode import read_held
from sparsec.lower.decode.held import VERSIONS, Held
from sparsec.plan.cost_terms import item
from sparsec.plan.states.evict import given_up, lag
from sparsec.runtime.decode.cache_layout import Bank
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate


@dataclass(frozen=True, slots=True)
class Form:
    """A variant that evicts: its exact and its linear attention, what gives pairs up, and after how many chunks."""

    exact: Node
    linear: Node
    node: Node
    lag: int

    @property
    def parts(self) -> dict[str, Node]:
        """Queries, keys, values and features, which may be maps."""
        q, k, v = self.exact.src[0], self.exact.src[1].src[0], self.node.src[1]
        return {"q": q, "k": k, "v": v, "fq": self.linear.src[0], "fk": self.node.src[0]}

    @property
    def names(self) -> dict[str, str]:
        """The parts that are inputs, by name."""
        return {part: str(node["name"]) for part, node in self.parts.items() if node.op is Op.INPUT}

    @property
    def made(self) -> tuple[str, ...]:
        """The parts that are maps."""
        return tuple(part for part, node in self.parts.items() if node.op is Op.MAP)


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
        if node is not None and behind is not None and _is_exact(exact, node, behind) and _plain(linear, node):
            return Form(exact, linear, node, behind)
    name = next(node for node in graph.nodes if node.op is Op.EVICT)
    what = "attention over inputs that are held, and the state of the others, merged by lse"
    fix = "give features as inputs, or as maps of inputs"
    raise DeclarationError(f"{graph.name}, {graph.names[name]}", "evict", f"it decodes as {what}", fix)


def _plain(linear: Node, node: Node) -> bool:
    """Whether features are inputs, or maps of inputs."""
    features = linear.src[0], node.src[0]
    return all(f.op is Op.INPUT or (f.op is Op.MAP and all(s.op is Op.INPUT for s in f.src)) for f in features)


def _is_exact(attend: Node, node: Node, behind: int) -> bool:
    """Whether an attend reads what is held, of inputs alone."""
    if attend.op is not Op.ATTEND or len(attend.positional) != 3 or attend.src[1].op is not Op.TOKENS:
        return False
    q, memory, mask = attend.positional
    if mask.op is not Op.MASK or list(mask.captures.values()) != [node] or memory.src[1] is not node.src[1]:
        return False
    inputs = all(x.op is Op.INPUT for x in (q, *memory.src))
    (name,), size = mask.captures, node.integer("size")
    mine = f"{name}[b, j, h * ({node.shape[2]}) // ({q.shape[2]})]"
    shown = build.mask(memory, where=f"(j <= i) & ({mine} >= i // {size} - {behind})", **{name: node})
    plain = build.attend(q, memory, shown, scale=attend.expr("scale"))
    return inputs and plain is attend


def features_of(graph: Variant, form: Form) -> Variant | None:
    """The features that are maps, as a variant of their own; None where all are inputs."""
    nodes = tuple(form.parts[part] for part in form.made)
    if not nodes:
        return None
    used = set(topological(nodes))
    named = {**graph.names, **{form.parts[part]: f"made_{part}" for part in form.made}}
    return graph.with_outputs(nodes, [n for n in graph.parameters if n in used], named)


def held_of(form: Form, shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]) -> Held:
    """The sizes of a step on tokens of these shapes ``[B,N,H,·]`` and dtypes, by part."""
    q, k, v, fk = (shapes[part] for part in ("q", "k", "v", "fk"))
    scale = form.exact.expr("scale")
    assert scale is not None
    dims = {str(d): n for d, n in zip(form.exact.src[0].shape, q, strict=True)}
    keep, size = form.node.integer("keep"), form.node.integer("size")
    kinds = tuple((part, dtypes[part]) for part in form.parts)
    return Held(q[2], k[2], q[3], v[3], fk[3], keep, size, form.lag, float(evaluate(scale, dims)), kinds)


def held_at(form: Form, dims: Mapping[str, int], dtype: str) -> Held:
    """The sizes of a step at these dims."""
    shapes = {part: [int(evaluate(d, dims)) for d in node.shape] for part, node in form.parts.items()}
    return held_of(form, shapes, {part: dtype for part in form.parts})


def banks(held: Held) -> tuple[Bank, ...]:
    """What a sequence holds."""
    lead, kinds = (VERSIONS, held.groups), dict(held.dtypes)
    rows = [Bank(part, (held.rows, held.groups, held.width(part)), None, kinds[part]) for part in ("k", "v", "fk")]
    named = Bank("table", (*lead, held.rows), None, "int32")
    state = Bank("m", (*lead, held.features, held.cols), None)
    return *rows, named, state, Bank("z", (*lead, held.features), None)


def describe(form: Form, target: Target, dims: Mapping[str, int], dtype: str) -> str:
    """Lines for ``sparsec show --level stream``: one new token of every sequence."""
    held, batch = held_at(form, dims, dtype), dims.get("B", 1)
    lines = [f"  {b.name}: {b.dtype} {list(b.shape)} per sequence, whatever its length" for b in banks(held)]
    size = sum(prod(b.shape) * item(b.dtype) for b in banks(held))
    lines.append(f"  bytes of a sequence: {size}")
    lines.append(f"step for {batch} x 1 new token on {target.processors} processors")
    lines.append(f"  take_in: programs {held.groups * batch}, where a sequence begins a chunk of {held.size} tokens")
    lines += [f"  {' and '.join(form.made)}: of the new tokens, before they join the cache"] * bool(form.made)
    tiles = -(-held.heads // held.groups // read_held.default(held, target.name, 1).rows)
    return "\n".join([*lines, f"  read_held: programs {tiles * held.groups * batch}"]) + "\n"
