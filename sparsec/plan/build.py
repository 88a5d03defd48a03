"""From a graph to a plan: outputs first, each anchor claimed by the class that computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.rules_state import is_ladder
from sparsec.ir.scores import has_lse
from sparsec.plan.added import added
from sparsec.plan.adjoint import is_total
from sparsec.plan.attention.attend import gathered, lists, tiled
from sparsec.plan.attention.merge import merge
from sparsec.plan.gradient import gradient
from sparsec.plan.maps.map import mapped
from sparsec.plan.maps.prefix import prefix
from sparsec.plan.maps.row_numbers import norm2, row_lse
from sparsec.plan.memory import ordered
from sparsec.plan.plan import Plan
from sparsec.plan.planner import Planner
from sparsec.plan.precision import OUTPUTS, exact, handed, merged, rounded, unit_vectors
from sparsec.plan.row_dot import folded
from sparsec.plan.selection.select import select
from sparsec.plan.selection.shared import select_set
from sparsec.plan.selection.signal import compared, signal
from sparsec.plan.sizes import Sizes
from sparsec.plan.states.evict import evict, linear_reads, read_given_up
from sparsec.plan.states.fenwick import ladder
from sparsec.plan.states.mass import mass
from sparsec.plan.states.mixture import mixture
from sparsec.plan.states.route import balance, listed, shares
from sparsec.plan.states.scan import readers_of, scan, surprise
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.walk import depends_on


def build_plan(
    name: str, outputs: Sequence[Node], names: Mapping[Node, str], static: Mapping[str, int], dtype: str
) -> Plan:
    """The plan of a graph for static sizes and a dtype; raises ``PlanError`` with the refusal of what has no kernel.

    Args:
        names: how the text calls each node.
        static: heads and head dims by name.
        dtype: of the "float" tensors: float32, float16 or bfloat16.
    """
    nodes = topological(outputs)
    vjps = tuple(n for n in nodes if n.op is Op.VJP)
    targets = frozenset(n.operands["target"] for n in nodes if n.op is Op.AUX and "target" in n.operands)
    with_lse = frozenset(n.src[0] for n in nodes if n.op is Op.LSE) | {v.src[0] for v in vjps if has_lse(v.src[0])}
    with_lse |= targets
    inner = frozenset(vjps) - frozenset(outputs) - handed(nodes) - rounded(nodes)
    planner = Planner(Sizes(static, dtype), dict(names), _token_length(nodes), with_lse, vjps=vjps, inner=inner)
    planner.recalls, planner.finals = readers_of(nodes), frozenset(n for n in outputs if n.op is Op.WRITE)
    planner.linear = linear_reads(nodes)
    planner.compared = compared(nodes)
    planner.weights = {n.src[1]: n for n in nodes if n.op is Op.WEIGHTS}
    planner.inputs = frozenset(str(n["name"]) for n in nodes if n.op is Op.INPUT)
    planner.producers = PRODUCERS
    if not any(depends_on(dim, "B") for n in nodes if n.op is Op.INPUT for dim in n.shape):
        planner.batch = constant(1)
    planner.exact = exact(nodes, outputs, lambda node: planner.sizes.value(node.shape[-1]))
    planner.units = unit_vectors(nodes, outputs) if dtype != "float32" else frozenset()
    planner.merged = merged(nodes, outputs)
    planner.readers = Counter([*outputs, *(s for n in nodes if n.op is not Op.VJP for s in n.src)])
    buffers = tuple(_output(planner, node, _dtype(planner, node)) for node in outputs)
    kinds = {b: replace(planner.buffers[b], role="output") for b in buffers if planner.buffers[b].role != "input"}
    all_buffers = tuple(kinds.get(n, b) for n, b in planner.buffers.items())
    kernels = ordered(added(folded(planner.kernels), buffers))
    used = {name for k in kernels for name in (*k.reads, *k.writes)}
    left = tuple(b for b in all_buffers if b.role != "temporary" or b.name in used)
    return Plan(name, kernels, left, buffers, tuple(planner.notes))


def _dtype(planner: Planner, node: Node) -> str:
    return planner.sizes.dtype_of(node)


def _token_length(nodes: Sequence[Node]) -> Expr:
    """The length that query positions count along: that of the tokens; without a memory, of what has tokens."""
    customary = (var("TK"), var("T"))
    found = [node.shape[1] for node in nodes if node.op is Op.TOKENS]
    found = found or [n.shape[1] for n in nodes if n.op is Op.INPUT and len(n.shape) > 2 and n.shape[0] is var("B")]
    return next((length for length in found if length in customary), found[0] if found else constant(0))


def _output(planner: Planner, node: Node, dtype: str) -> str:
    """Plan one result of the variant and give its buffer."""
    if node.op is Op.LSE:
        return _lse(planner, node)
    if node.op is Op.AUX:
        if "target" in node.operands:
            _value(planner, node.operands["target"], True, planner.sizes.dtype)
        return balance(planner, node) if node["fn"] == "balance" else signal(planner, node)
    if node.op in (Op.EVICT, Op.PREFIX, Op.SURPRISE, Op.NORM2, Op.ROW_LSE, Op.MASS, Op.MIXTURE):
        return PRODUCERS[node.op](planner, node)
    if node.op is Op.WRITE:
        _states(planner, node)
        return planner.places[node, "tensor"]
    if node.op is Op.VJP or is_total(node):
        return gradient(planner, node, dtype)
    if node.op is Op.MAP:
        return mapped(planner, node)
    if node.op in (Op.TOPK, Op.GIVEN):
        return _chosen(planner, node)
    return _value(planner, node, False, dtype)


def _states(planner: Planner, written: Node) -> None:
    """Plan what reads a written bank, and the states that it leaves."""
    if is_ladder(written):
        ladder(planner, written)
    else:
        scan(planner, written)


def _chosen(planner: Planner, node: Node) -> str:
    """A list: of parts, of units that a whole set of queries reads, or of each query's own."""
    if node["unit"] == "part":
        return listed(planner, node)
    whole = node.op is Op.TOPK and node["scope"] == "query_set"
    return select_set(planner, node) if whole else select(planner, node, None)[0]


def _lse(planner: Planner, node: Node) -> str:
    _value(planner, node.src[0], True, planner.sizes.dtype)
    return planner.places[node.src[0], "lse"]


def _value(planner: Planner, node: Node, wants_lse: bool, dtype: str) -> str:
    """The buffer of an attend's or a merge's output, planned on first use."""
    if (node, "o") in planner.places and (not wants_lse or (node, "lse") in planner.places):
        return planner.places[node, "o"]
    if node in planner.linear.values():
        read_given_up(planner, node)
    elif node.op is Op.ATTEND and lists(node):
        gathered(planner, node, wants_lse or node in planner.lse_of, dtype)
    elif node.op is Op.ATTEND:
        tiled(planner, [node], node, wants_lse or node in planner.lse_of, dtype)
    elif node.op is Op.MERGE:
        merge(planner, node, wants_lse or node in planner.lse_of, dtype, lambda n, w, d: _value(planner, n, w, d))
    elif node.op is Op.RECALL:
        _states(planner, node.src[1])
    elif node.op is Op.MAP:
        return mapped(planner, node)
    else:
        reason = f"{node.op.value} is no output of attention, states or maps, which are what merges and results are of"
        raise planner.refuse(node, f"{reason}; put a map around it, or compute it before the call")
    return planner.places[node, "o"]


def _read(planner: Planner, node: Node) -> str:
    return _value(planner, node, False, "float32" if node in planner.exact else planner.sizes.dtype)


PRODUCERS: dict[Op, Callable[[Planner, Node], str]] = {
    Op.MAP: mapped,
    Op.PREFIX: prefix,
    Op.EVICT: evict,
    Op.WEIGHTS: shares,
    Op.SURPRISE: surprise,
    Op.NORM2: norm2,
    Op.ROW_LSE: row_lse,
    Op.MASS: mass,
    Op.MIXTURE: mixture,
    **dict.fromkeys(OUTPUTS, _read),
    Op.LSE: _lse,
}
"""What plans a tensor that another kernel reads."""
