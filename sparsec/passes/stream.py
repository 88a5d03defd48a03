"""`stream`: a variant's decode step and the cache that it reads, or a refusal in a sentence.

variant(q [B,T,…], k [B,T,…])   ->   the same over TQ new queries and TK keys so far, and what the cache keeps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsec.ir.lengths import lengths
from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.origin import written_again
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.passes.stream_causal import check_causal, refusal, scored
from sparsec.passes.stream_keep import chosen_only, reach
from sparsec.passes.stream_spec import CacheSpec, Held, Kept, Running
from sparsec.passes.stream_states import beside_memory, carried_on, masses_as_states, memories
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.walk import depends_on, substitute


@dataclass(frozen=True, slots=True)
class Streamed:
    """A decode step.

    Attributes:
        variant: the step: queries and keys have lengths of their own, ``queries`` and ``keys``; states begin at inputs
            and are outputs, behind those of the variant.
        outputs: how many results a step gives its caller.
        twins: inputs that are the new rows of another one, which is kept as memory, by name.
        ones: inputs that are 1 everywhere.
    """

    variant: Variant
    spec: CacheSpec
    queries: str
    keys: str
    outputs: int
    twins: Mapping[str, str]
    ones: tuple[str, ...] = ()

    @property
    def given(self) -> list[str]:
        """The inputs that a caller gives with every step."""
        own = {*(state.name for state in self.spec.states), *self.twins, *self.ones}
        return [name for name in self.variant.inputs if name not in own]


def stream(variant: Variant) -> Streamed:
    """The decode step of a variant after the other passes, and its cache.

    Raises:
        DeclarationError: it reads what a later token may change, or computes with its length.
    """
    written_again(variant.origins)
    _check_memories(variant)
    plain, ones = masses_as_states(variant)
    both, twins = beside_memory(plain)
    step, states = carried_on(_apart(both))
    check_causal(step)
    length = lengths(step)
    keys = var("TK") if length.keys is None and states else length.keys
    if length.queries is None or keys is None or {length.queries.head, keys.head} != {"var"}:
        raise refusal(step, step.outputs[0], "has no plain numbers of queries and keys", "call them TQ and TK")
    names = (str(length.queries.value), str(keys.value))
    _check_rows(step, *names)
    spec = _spec(step, *names, states, ones)
    return Streamed(step, spec, *names, len(variant.outputs), twins, ones)


LEAVE = (Op.RECALL, Op.RESIDUAL, Op.SURPRISE, Op.ATTEND, Op.MERGE)


def _check_memories(variant: Variant) -> None:
    """Raises DeclarationError where tokens to remember are what states or attention leave."""
    for node in variant.nodes:
        if node.op is Op.TOKENS and any(n.op in LEAVE for n in topological(node.src)):
            why = "remembers what states or attention leave, and a cache keeps inputs"
            raise refusal(variant, node, why, "compute it in a variant of its own and give it as an input")


def _apart(variant: Variant) -> Variant:
    """One length T for both becomes TQ for what queries bring and TK for what is remembered."""
    length = lengths(variant)
    if not length.query_names & length.key_names:
        return variant
    shared = length.query_names | length.key_names
    kept = _remembered(variant)

    def renamed(node: Node) -> Node | None:
        if node.op is not Op.INPUT or not any(depends_on(d, *shared) for d in node.shape):
            return None
        name = "TK" if node in kept else "TQ"
        shape = tuple(substitute(d, {n: var(name) for n in shared}) for d in node.shape)
        return _reshaped(node, shape)

    nodes = rewrite((*variant.parameters, *variant.outputs), (renamed,))
    count = len(variant.parameters)
    names = {node: variant.names[old] for node, old in zip(nodes[:count], variant.parameters, strict=True)}
    return variant.with_outputs(nodes[count:], nodes[:count], names)


def _reshaped(node: Node, shape: tuple[Expr, ...]) -> Node:
    from sparsec.ir.build import input as declared

    return node if shape == node.shape else declared(str(node["name"]), shape, node.dtype)


def _remembered(variant: Variant) -> frozenset[Node]:
    """Inputs that become memory: keys, values, what is scored, what masks and biases capture, and what is summed up."""
    read = {s for node in variant.nodes for s in memories(node)}
    summed = topological([node for node in read if node.op is Op.PREFIX])
    return frozenset(node for node in (*read, *summed) if node.op is Op.INPUT)


def _check_rows(step: Variant, queries: str, keys: str) -> None:
    """Raises DeclarationError where the new rows alone would be read at the positions of all tokens."""
    for source in (s for node in step.nodes for s in memories(node)) if queries != keys else ():
        if len(source.shape) > 1 and depends_on(source.shape[1], queries):
            why = "is read at the positions of all tokens, and a step has its new rows alone"
            raise refusal(step, source, why, f"declare what it is made of with {keys} rows")


def _spec(step: Variant, queries: str, keys: str, states: tuple[Held, ...], ones: tuple[str, ...]) -> CacheSpec:
    kept: list[Kept] = []
    fresh: list[str] = []
    fixed: list[str] = []
    for node in step.parameters:
        name, length = str(node["name"]), node.shape[1] if len(node.shape) > 1 else constant(0)
        if name in ones or name in {held.name for held in states}:
            continue
        if any(depends_on(d, keys) for d in node.shape[2:] + node.shape[:1]):
            raise refusal(step, node, f"has {keys} in another dim than its second", "give it rows per token")
        if depends_on(length, keys):
            kept.append(_kept(step, node, name, _unit(step, node, length, keys)))
        else:
            (fresh if depends_on(length, queries) else fixed).append(name)
    running = [_running(step, n) for n in step.nodes if n.op is Op.SUMMARY and n.word("fn") != "given"]
    return CacheSpec(tuple(kept), tuple(running), tuple(fresh), tuple(fixed), states)


def _unit(step: Variant, node: Node, length: Expr, keys: str) -> int:
    """Tokens per row of an input with a row per token or per chunk."""
    if length.value == keys:
        return 1
    sizes = {n.integer("size") for n in step.nodes if n.op is Op.SUMMARY and node in n.src[1:]}
    for topk in (n for n in step.nodes if n.op is Op.TOPK):
        score = topk.src[0]
        while score.op in (Op.REDUCE, Op.BIAS):
            score = score.src[0]
        sizes |= {scored(topk, score)[0]} if score.op is Op.SCORE and score.src[1] is node else set()
    for size in sizes:
        if length is (var(keys) + (size - 1)) // size:
            return size
    raise refusal(step, node, f"has {length} rows, which is no number of chunks", f"declare ({keys} + C - 1) // C rows")


def _kept(step: Variant, node: Node, name: str, unit: int) -> Kept:
    found = reach(step, name) if unit == 1 else None
    window = None if found is None else found.window
    sinks = found.sinks if found is not None and window is not None else 0
    chosen = unit == 1 and chosen_only(step, name)
    return Kept(name, unit, window, sinks, _product(node.shape[2:]), node.dtype, chosen)


def _running(step: Variant, summary: Node) -> Running:
    memory = summary.src[0]
    if memory.op is not Op.TOKENS:
        raise refusal(step, summary, "is a summary of a summary, which has no decode step yet", "summarise tokens")
    heads, d, dv = summary.shape[2:]
    users = [user for user in step.nodes if summary in user.src]
    scores = {user["rounding"] for user in users if user.op is Op.SCORE}
    attended = any(user.op is Op.ATTEND for user in users)
    row = heads * (d + dv) if attended else heads * d if "storage" in scores else constant(0)
    exact = heads * d if "none" in scores else constant(0)
    return Running(step.names[summary], summary.integer("size"), summary.integer("stride"), row, exact)


def _product(dims: tuple[Expr, ...]) -> Expr:
    result = constant(1)
    for dim in dims:
        result = result * dim
    return result
