"""Rules of matrix states: writing, residuals, transfer, recall. A rule gives what is wrong with a node, or None."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.rules_select import Problem, dims, grouped, rank
from sparsec.ir.scores import clash

_DECAY_RANK = {"scalar": 3, "key": 4, "value": 4, "full": 5}


def write(node: Node) -> Problem | None:
    """Keys and values fit the states; operands are those that the attributes ask for."""
    state, k, v = node.positional
    if wrong := rank(k, 4) or rank(v, 4):
        return wrong
    for source, dim, name in ((k, state.shape[3], "rows"), (v, state.shape[4], "cols")):
        if clash(source.shape[-1], dim):
            return Problem(
                dims(source), f"its last dim must be the state's {name} = {dim}", f"{name} = {source.shape[-1]}"
            )
    return _decay(node) or _erase(node) or _route(node) or _levels(node) or _steps(node)


def _decay(node: Node) -> Problem | None:
    decay = node.operands.get("decay")
    if (node["decay_kind"] == "none") != (decay is None):
        said, rule = f"decay_kind = {node['decay_kind']}", "a decay, and it alone, takes log-decays <= 0 as `decay`"
        if decay is None:
            return Problem(f"{said} without decay", rule, "decay=<log-decays>, or leave decay_kind out")
        return Problem(said, rule, "decay_kind = scalar, key or value, or drop decay=")
    return rank(decay, _DECAY_RANK[str(node["decay_kind"])]) if decay is not None else None


def _erase(node: Node) -> Problem | None:
    erase = {"erase_a", "erase_b"} & set(node.operands)
    if erase and (node["rule"] != "delta" or len(erase) == 1):
        return Problem(
            ", ".join(sorted(erase)), "a delta rule takes erase_a and erase_b together, or neither", "rule = delta"
        )
    return None


def _route(node: Node) -> Problem | None:
    route = node.operands.get("route")
    if route is None:
        return (
            Problem("weight", "weights belong to a route", "add route") if "weight" in node.operands else _alike(node)
        )
    if route.kind != "selection" or dict(route.attrs).get("unit") != "part":
        return Problem(f"route is {route.op.value}", "a route is a list of parts", "topk(scores) {unit = part}")
    return None


def _alike(node: Node) -> Problem | None:
    """Parts that no route tells apart are levels, or one."""
    bank = node.src[0]
    if node.op.name != "WRITE" or bank.op.name != "STATE" or is_ladder(node) or bank["parts"] == 1:
        return None
    rule = "parts that every token writes alike are one"
    return Problem(f"parts = {bank['parts']}, no route", rule, "parts = 1, or a route: topk(scores) {unit = part}")


def is_ladder(written: Node) -> bool:
    """Whether the parts of a written bank are the levels of a Fenwick schedule."""
    return (
        written.op.name == "WRITE"
        and written.src[0].op.name == "STATE"
        and written.src[0].word("schedule") == "fenwick"
    )


def _levels(node: Node) -> Problem | None:
    """Levels are all written."""
    if is_ladder(node) and "route" in node.operands:
        return Problem("schedule = fenwick", "its parts are levels, which no route chooses", "schedule = single")
    return None


def _steps(node: Node) -> Problem | None:
    """Several steps per token write one state per head."""
    if node.integer("steps") == 1:
        return None
    if "route" in node.operands or is_ladder(node):
        return Problem(f"steps = {node['steps']}", "several steps write one state per head", "no route, no levels")
    return None


def _one_step(written: Node) -> Problem | None:
    """What asks for a token's own write asks for one."""
    if written.op.name == "WRITE" and written.integer("steps") != 1:
        return Problem(f"steps = {written['steps']}", "a token of several steps has no one prediction", "steps = 1")
    return None


def residual(node: Node) -> Problem | None:
    """What is left is left by a write of the same keys."""
    v, written, k = node.positional
    if written.op.name != "WRITE":
        return Problem(written.op.value, "a residual is what a write leaves", "write to the state first")
    return rank(v, 4) or rank(k, 4) or _one_step(written)


def surprise(node: Node) -> Problem | None:
    """Delta rules alone predict, by the key that they write."""
    written = node.src[0]
    if written.op.name != "WRITE" or written["rule"] != "delta" or "erase_a" in written.operands:
        return Problem(written.op.value, "a surprise is what a delta rule writes", "write(…) {rule = delta}")
    return _one_step(written)


def mass(node: Node) -> Problem | None:
    """Keys per state, rates and log-decays per token and state, one part per token."""
    k, given = node.src[0], node.operands
    if wrong := rank(k, 4):
        return wrong
    for name in ("beta", "decay"):
        if name in given and (wrong := rank(given[name], 3)):
            return wrong
    return _route(node) or _slot(node, node)


def _slot(node: Node, written: Node) -> Problem | None:
    """A slot is one of the list that a write's tokens choose their parts by."""
    slot, route = node["slot"], written.operands.get("route")
    if slot is None:
        return None
    count = route.shape[3].value if route is not None else None
    if route is None or (isinstance(count, int) and node.integer("slot") >= count):
        slots = "no route" if route is None else f"a route of {count} slots"
        return Problem(f"slot = {slot}, {slots}", "a slot is one of the write's route, from 0 on", "slot = None")
    return None


def mixture(node: Node) -> Problem | None:
    """Candidates are shaped alike, with the queries' last dim; a bias and a gain have a number per candidate."""
    q, *found = node.positional
    for z in found:
        if wrong := rank(z, 4):
            return wrong
        if clash(z.shape[-1], q.shape[-1]) or clash(z.shape[2], found[0].shape[2]):
            return Problem(f"{dims(q)} and {dims(z)}", "queries and candidates have one D, candidates one HKV", "match")
    for source in node.operands.values():
        if wrong := rank(source, 4):
            return wrong
    return grouped(q.shape[2], found[0].shape[2])


def evict(node: Node) -> Problem | None:
    """A key and a value per token and head."""
    k, v = node.src
    if wrong := rank(k, 4) or rank(v, 4):
        return wrong
    if any(clash(one, other) for one, other in zip(k.shape[:3], v.shape[:3], strict=True)):
        return Problem(f"{dims(k)} and {dims(v)}", "keys and values have one length and heads", "match them")
    return None


def transfer(node: Node) -> Problem | None:
    """Eviction by score needs scores and how many to keep."""
    if (node["by"] == "score") != ("score" in node.operands):
        return Problem(f"by = {node['by']}", "by = score, and it alone, takes scores", "add or drop them")
    if node["by"] == "score" and node["keep"] is None:
        return Problem("keep = None", "by = score keeps the best few", "keep = 768")
    return None


def recall(node: Node) -> Problem | None:
    """States agree with each other and with the queries."""
    q, *states = node.positional
    if wrong := rank(q, 4):
        return wrong
    if any(map(is_ladder, states)):
        return _ladder(node, states)
    if node["mode"] == "slot_softmax":
        return _slots(q, states)
    for state in states:
        if clash(q.shape[-1], state.shape[4 if node["turned"] else 3]) or clash(state.shape[4], states[0].shape[4]):
            return Problem(f"{dims(q)} and {dims(state)}", "queries and states have one D, states one DV", "match them")
    if node["top"] is not None and node["mode"] == "sum":
        return Problem(f"top = {node['top']}", "a sum reads every active state", "mode = state_softmax")
    if any(state.op.name == "STATE" for state in states):
        return Problem("a state", "a recall reads what tokens write", "recall(q, write(state(), k, v))")
    if node["turned"] and (len(states) > 1 or node["mode"] != "sum"):
        return Problem("turned", "one bank is read from its other side, in a sum", "mode = sum, one bank")
    if node["slot"] is not None and (len(states) > 1 or node["mode"] != "sum" or states[0].op.name != "WRITE"):
        return Problem(f"slot = {node['slot']}", "one part of one bank answers as it is", "mode = sum, one bank")
    return _slot(node, states[0])


def _ladder(node: Node, states: list[Node]) -> Problem | None:
    """Levels are read in one sum, each with its own weight per token and head, after the token's write."""
    gate, parts = node.operands.get("level_gate"), states[0].shape[1]
    if len(states) > 1 or node["mode"] != "sum" or node["when"] != "after":
        return Problem("schedule = fenwick", "levels are read alone, in a sum, after the write", "one recall per bank")
    if gate is None or len(gate.shape) != 4 or clash(gate.shape[3], parts):
        said = "no level_gate" if gate is None else dims(gate)
        return Problem(said, f"levels have a weight each per token and head: [B,T,H,{parts}]", "add level_gate")
    return None


def _slots(q: Node, states: list[Node]) -> Problem | None:
    """Slots are rows of a state of values beside a state of keys with as many parts and rows."""
    if len(states) % 2:
        return Problem(f"{len(states)} states", "slots have values and keys: recall(q, values, keys, …)", "give both")
    for values, keys in zip(states[::2], states[1::2], strict=True):
        pairs = [(q.shape[-1], keys.shape[4]), *zip(values.shape[:4], keys.shape[:4], strict=True)]
        if any(clash(one, other) for one, other in pairs):
            value = f"{dims(q)}, {dims(values)} and {dims(keys)}"
            return Problem(value, "keys have the queries' dim as columns, values as many parts and rows", "match them")
    return None
