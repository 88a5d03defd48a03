"""Matrix states in a decode step: every written bank begins where the step before left it.

write(state(), k, v)  ->  write(state(m_s), k, v), an output too; the cache holds m_s, and the step writes it in place
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.ir.build import input as declared
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.lengths import lengths
from sparsec.ir.make import make, remake
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import written_as
from sparsec.ir.rewrite import rewrite
from sparsec.ir.rules_state import is_ladder
from sparsec.ir.variant import Variant, numbered
from sparsec.passes.stream_causal import refusal
from sparsec.passes.stream_spec import Held
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.walk import substitute

NOW = "_now"
"""What the name of an input's rows of the step itself ends in, where it is kept as memory too."""


def memories(node: Node) -> tuple[Node, ...]:
    """The sources of a node that are read as memory, by later queries too."""
    if node.op in (Op.TOKENS, Op.SLOTS):
        return node.src
    read = node.positional[1:] if node.op in (Op.SCORE, Op.SUMMARY) else ()
    return (*read, *node.captures.values())


def beside_memory(variant: Variant) -> tuple[Variant, dict[str, str]]:
    """Inputs that are memory and are written to a state, or asked with, too: the latter as inputs of their own.

    Gives the variant and, by the name of such an input, the one whose new rows it is.
    """
    kept = {s for node in variant.nodes for s in memories(node) if s.op is Op.INPUT}
    others = {s for n in variant.nodes for s in _plain(n) if s in kept and len(s.shape) > 1 and s.shape[0] is var("B")}
    if not any(n.op is Op.WRITE for n in variant.nodes):
        return variant, {}
    found = {node: _twin(variant, node) for node in variant.parameters if node in others}

    def apart(node: Node) -> Node | None:
        plain = _plain(node)
        sources = [found.get(s, s) if s in plain else s for s in node.src]
        return remake(node, sources) if sources != [*node.src] else None

    outputs = rewrite(variant.outputs, (apart,))
    names = {**variant.names, **{twin: str(twin["name"]) for twin in found.values()}}
    step = variant.with_outputs(outputs, [*variant.parameters, *found.values()], names)
    return step, {str(twin["name"]): str(node["name"]) for node, twin in found.items()}


def _plain(node: Node) -> frozenset[Node]:
    """The sources that a node reads of its own rows alone."""
    return frozenset(node.src) - frozenset(memories(node))


def _twin(variant: Variant, node: Node) -> Node:
    """An input like another, with as many rows as there are queries."""
    length = lengths(variant)
    name = next(n for n in numbered(f"{node['name']}{NOW}") if n not in variant.inputs)
    rows = {n: q for n in length.key_names if (q := length.queries) is not None}
    return declared(name, tuple(substitute(d, rows) for d in node.shape), node.dtype)


def masses_as_states(variant: Variant) -> tuple[Variant, tuple[str, ...]]:
    """Masses of keys as what states of one row hold, which are written with the key 1.

    mass(k, …)  ->  recall(ones, write(state() {rows = 1}, ones, k, …))

    Gives the variant and the names of the inputs that are 1.
    """
    if not any(node.op is Op.MASS for node in variant.nodes):
        return variant, ()
    made: dict[tuple[Expr, Expr], Node] = {}

    def held(node: Node) -> Node | None:
        return _held_mass(node, _ones(variant, node.src[0], made)) if node.op is Op.MASS else None

    outputs = rewrite(variant.outputs, (held,))
    names = {**variant.names, **{one: str(one["name"]) for one in made.values()}}
    step = variant.with_outputs(outputs, [*variant.parameters, *made.values()], names)
    return step, tuple(str(one["name"]) for one in made.values())


def _ones(variant: Variant, k: Node, made: dict[tuple[Expr, Expr], Node]) -> Node:
    """The key 1 of every token and head of k."""
    key = (k.shape[1], k.shape[2])
    if key not in made:
        taken = {*variant.inputs, *(str(one["name"]) for one in made.values())}
        name = next(n for n in numbered("ones") if n not in taken)
        made[key] = declared(name, (*k.shape[:3], constant(1)), "float32")
    return made[key]


def _held_mass(node: Node, ones: Node) -> Node:
    k, given = node.src[0], node.operands
    route = given.get("route")
    parts = 1 if route is None else int(str(route.src[0].shape[3]))
    bank = state(heads=k.shape[2], rows=1, cols=k.shape[3], parts=parts)
    kept = {name: given.get(name) for name in ("beta", "decay", "route", "weight")}
    written = write(bank, ones, k, freeze_unselected=node.flag("freeze_unselected"), **kept)  # type: ignore[arg-type]
    return recall(ones, written, slot=node["slot"])  # type: ignore[arg-type]


def carried_on(variant: Variant) -> tuple[Variant, tuple[Held, ...]]:
    """The variant whose banks begin at inputs of their own and are outputs, and what the cache holds of them.

    Raises DeclarationError for a bank that no input can begin.
    """
    writes = [node for node in variant.nodes if node.op is Op.WRITE]
    banks = {node: _bank(variant, node) for node in writes}
    done: dict[Node, Node] = {}
    for node in variant.nodes:
        sources = [done[source] for source in node.src]
        if node in banks:
            sources[0] = make(Op.STATE, [banks[node]], **dict(node.src[0].attrs))
        with written_as(node):
            done[node] = node if sources == [*node.src] else remake(node, sources)
    outputs = [done[node] for node in variant.outputs]
    outputs += [done[node] for node in writes if node not in variant.outputs]
    step = variant.with_outputs(outputs, _parameters(variant, writes, banks), _names(variant, done, banks))
    return step, tuple(_held(variant, node, banks[node], outputs.index(done[node])) for node in writes)


def _bank(variant: Variant, written: Node) -> Node:
    """The input at which a bank begins."""
    bank = written.src[0]
    if bank.op is not Op.STATE:
        raise refusal(variant, written, "is written twice per token", "write each state once")
    if bank.src and bank.src[0].op is not Op.INPUT:
        raise refusal(variant, bank, "begins at what is computed", "declare its first states as an input")
    name = next(n for n in numbered(f"m_{variant.names[written]}") if n not in variant.inputs)
    return declared(name, (var("B"), *bank.shape[1:]), "float32")


def _held(variant: Variant, written: Node, bank: Node, output: int) -> Held:
    initial = written.src[0].src[0] if written.src[0].src else None
    asked = None if initial is None else str(initial["name"])
    levels = written.src[0].integer("parts") if is_ladder(written) else None
    return Held(str(bank["name"]), variant.names[written], bank.shape[1:], output, asked, levels)


def _parameters(variant: Variant, writes: Sequence[Node], banks: Mapping[Node, Node]) -> list[Node]:
    """The inputs without first states, which the cache is given once, and with the banks."""
    first = {node.src[0].src[0] for node in writes if node.src[0].src}
    used = {s for n in variant.nodes if n.op is not Op.STATE or n not in {w.src[0] for w in writes} for s in n.src}
    return [*(p for p in variant.parameters if p not in first or p in used), *banks.values()]


def _names(variant: Variant, done: Mapping[Node, Node], banks: Mapping[Node, Node]) -> dict[Node, str]:
    return {
        **{new: variant.names[old] for old, new in done.items() if old in variant.names},
        **{bank: str(bank["name"]) for bank in banks.values()},
    }
