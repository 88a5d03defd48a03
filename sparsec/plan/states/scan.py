"""Matrix states: one kernel per written bank, with everything that reads it and the states that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.states.route import route_of
from sparsec.plan.states.scan_specs import Operand, Read, Scan, Writes
from sparsec.scalar.expr import Expr

LENGTH = "N"


def scan(planner: Planner, written: Node) -> Scan:
    """The kernel of a written bank, planned on first use."""
    found = planner.specs.get(written)
    if isinstance(found, Scan):
        return found
    writes, readers = writes_of(planner, written, units=True), planner.recalls.get(written, ())
    reads = tuple(_read(planner, written, reader) for reader in readers if reader.op is Op.RECALL)
    surprise = _surprise(planner, readers)
    final = None
    if written in planner.finals:
        final = planner.temporary(written, "tensor", written.shape, "float32")
    name = f"scan_{reads[0].out.name if reads else final or (surprise and surprise.name)}"
    spec = Scan(name, writes, reads, planner.sizes.dtype, final, surprise)
    planner.specs[written] = spec
    outs = [read.out.name for read in reads] + ([surprise.name] if surprise is not None else [])
    covers = [*_made_here(planner, written, readers), *readers, *([written] if final is not None else [])]
    asked = [read.q.name for read in reads]
    planner.add(spec, [*buffers(writes), *asked], [*outs, *([final] if final else [])], covers, dims(written))
    return spec


def _made_here(planner: Planner, written: Node, readers: Sequence[Node]) -> list[Node]:
    """The unit vectors that the kernel makes as it reads."""
    vectors = [written.src[1], *(r.src[0] for r in readers if r.op is Op.RECALL and not r.flag("turned"))]
    return [node for node in dict.fromkeys(vectors) if node in planner.units]


def surprise(planner: Planner, node: Node) -> str:
    """The buffer of what a delta rule writes; planned with the bank."""
    scan(planner, node.src[0])
    return planner.places[node, "tensor"]


def _surprise(planner: Planner, readers: Sequence[Node]) -> Operand | None:
    found = next((reader for reader in readers if reader.op is Op.SURPRISE), None)
    if found is None:
        return None
    exact = "float32"  # what a level leaves is clipped, and rounding would take some of it across the clip
    return Operand(planner.temporary(found, "tensor", found.shape, exact), exact)


def dims(written: Node) -> dict[str, Expr]:
    """The launch parameters of a bank's kernels."""
    length = written.src[1].shape[1]
    return {LENGTH: length, "TQ": length, "TK": length}


def buffers(writes: Writes) -> list[str]:
    """What tokens bring, and the states before the first."""
    operands = (writes.k, writes.v, writes.beta, writes.decay, *(writes.erase or ()))
    names = [*(x.name for x in operands if x is not None), *([writes.initial] if writes.initial else [])]
    if writes.route is not None:
        names += [writes.route.ids, *([writes.route.weight.name] if writes.route.weight is not None else [])]
    return names


def writes_of(planner: Planner, written: Node, *carried: str, units: bool = False) -> Writes:
    """How a bank is written; ``carried`` are attributes of the bank that the caller carries out.

    ``units``: whether the kernel may bring rows to length 1 as it reads them.

    Raises PlanError for what no kernel computes yet.
    """
    bank, k, v = written.positional
    _refuse(planner, written, carried)
    own = {name: node for name, node in written.operands.items() if name not in ("route", "weight")}
    given = {name: operand(planner, node) for name, node in own.items()}
    erase = (given["erase_a"], given["erase_b"]) if "erase_a" in given else None
    initial = _initial(planner, bank)
    return Writes(
        k=operand(planner, k, units),
        v=operand(planner, v),
        heads=planner.sizes.value(bank.shape[2]),
        rows=planner.sizes.value(bank.shape[3]),
        cols=planner.sizes.value(bank.shape[4]),
        rule=written.word("rule"),
        reads=written.word("reads"),
        decay_kind=written.word("decay_kind"),
        beta=given.get("beta"),
        decay=given.get("decay"),
        erase=erase,
        initial=initial,
        route=route_of(planner, written),
        key_heads=planner.sizes.value(k.shape[2]) // written.integer("steps"),
        initial_batched=initial is None or len(bank.src[0].shape) == 5,
        length=LENGTH,
        steps=written.integer("steps"),
    )


def _refuse(planner: Planner, written: Node, carried: Sequence[str]) -> None:
    bank = written.src[0]
    if bank.op is not Op.STATE:
        raise planner.refuse(
            written, "a state written twice per token has no kernel yet; the oracle has no meaning for it"
        )
    routed = ["parts"] if "route" in written.operands else []
    honours(planner, bank, "heads", "rows", "cols", *routed, *carried)
    honours(planner, written, "rule", "decay_kind", "reads", "freeze_unselected", "steps")
    if written["decay_kind"] == "full":
        raise planner.refuse(written, "a decay per element of the state has no kernel yet; the oracle runs it")


def _initial(planner: Planner, bank: Node) -> str | None:
    if not bank.src:
        return None
    name = planner.input(bank.src[0])
    if planner.buffers[name].dtype != "float32":
        raise planner.refuse(bank, f"its initial states are {planner.buffers[name].dtype}; declare the input float32")
    return name


def operand(planner: Planner, node: Node, units: bool = False) -> Operand:
    """A tensor as a kernel reads it; ``units``: unit vectors may be made of it on the way."""
    if units and node in planner.units:
        return replace(operand(planner, node.src[0]), unit=True)
    name = planner.input(node)
    return Operand(name, planner.buffers[name].dtype)


def _read(planner: Planner, written: Node, reader: Node) -> Read:
    """One recall as a read of the scan, its output a new buffer; fp32 for maps and merges."""
    dtype = "float32" if reader in planner.exact | planner.merged else planner.sizes.dtype
    asked = question(planner, written, reader, units=True)
    out = planner.temporary(reader, "o", reader.shape, dtype)
    return replace(asked, out=Operand(out, dtype))


def _refuse_candidates(planner: Planner, reader: Node) -> None:
    """Candidates of several parts that no pass has told apart."""
    routes = [bank.operands["route"] for bank in reader.positional[1:] if "route" in bank.operands]
    several = next((route for route in routes if planner.sizes.value(route.shape[3]) > 1), None)
    if reader["mode"] == "sum" or several is None:
        return
    what = f"mode = {reader['mode']} over parts of which a token chooses {several.shape[3]} (`{planner.name(several)}`)"
    known = "kernels weigh those that a router chooses, without biases or gains of levels"
    raise planner.refuse(reader, f"{what}; {known}: choose one (k = 1), or use mode = sum; the oracle runs it")


def question(planner: Planner, written: Node, reader: Node, units: bool = False) -> Read:
    """What a recall asks, its output yet without a name."""
    honours(planner, reader, "mode", "when", "scale", "renormalise", "read", "slot", "turned")
    _refuse_candidates(planner, reader)
    if len(reader.positional) > 2:
        raise planner.refuse(reader, "reading several banks at once has no kernel yet; add up one recall per bank")
    if reader["mode"] != "sum" or reader.operands:
        what = f"mode = {reader['mode']}" if reader["mode"] != "sum" else ", ".join(reader.operands)
        raise planner.refuse(reader, f"a readout with {what} has no kernel yet; the oracle runs it")
    q, scale = reader.src[0], reader.expr("scale") if not isinstance(reader["scale"], float | int) else None
    number = planner.sizes.number(scale) if scale is not None else float(reader["scale"])  # type: ignore[arg-type]
    nothing, route = Operand("", planner.sizes.dtype), written.operands.get("route")
    if route is not None and reader["read"] == "all":
        raise planner.refuse(reader, "parts that no token activates have no weight; use read = active")
    slots = planner.sizes.value(route.shape[3]) if route is not None else 1
    slot = reader["slot"] if isinstance(reader["slot"], int) and slots > 1 else None
    if route is not None and reader.flag("renormalise") and slots > 1 and slot is None:
        reason = f"renormalise = true over {route.shape[3]} given parts, whose weights may all be 0"
        raise planner.refuse(reader, f"{reason}; let a router choose them, or use renormalise = false")
    heads, query_heads = (planner.sizes.value(dim) for dim in (reader.shape[2], q.shape[2]))
    weighed = route is not None and not reader.flag("renormalise") and reader["slot"] is None
    turned, when = reader.flag("turned"), reader.word("when")
    asked = operand(planner, q, units and not turned)
    return Read(asked, nothing, heads, number, when, query_heads, weighed, slot, turned)


def readers_of(nodes: Sequence[Node]) -> dict[Node, tuple[Node, ...]]:
    """The recalls and surprises of every written bank, in the order of the graph."""
    found: dict[Node, tuple[Node, ...]] = {}
    for node in nodes:
        first = {Op.RECALL: 1, Op.SURPRISE: 0}.get(node.op)
        for bank in dict.fromkeys(node.positional[first:]) if first is not None else ():
            found[bank] = (*found.get(bank, ()), node)
    return found
