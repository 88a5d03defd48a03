"""Merges: fused into one online softmax where the branches allow it, otherwise a kernel that combines rows."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rules_read import branches
from sparsec.plan.attention.attend import joinable, tiled
from sparsec.plan.planner import Planner
from sparsec.plan.specs import Combine
from sparsec.scalar.expr import Expr


def branches_of(merge: Node) -> list[Node]:
    """The outputs that a merge takes, without its gates; nested log-sum-exp merges are flattened."""
    outputs = list(branches(merge)[0])
    if merge.word("fn") != "lse":
        return outputs
    return [inner for o in outputs for inner in (branches_of(o) if o.op is Op.MERGE and o.word("fn") == "lse" else [o])]


def merge(planner: Planner, node: Node, wants_lse: bool, dtype: str, output: Callable[[Node, bool, str], str]) -> None:
    """Plan a merge; ``output`` plans a branch and gives its buffer."""
    outputs = branches_of(node)
    if node.word("fn") == "lse":
        why_not = joinable(outputs)
        if why_not is None:
            return tiled(planner, outputs, node, wants_lse, dtype)
        planner.notes.append(f"{planner.name(node)} combines its branches in a kernel of its own: {why_not}")
    if node.word("fn") not in ("lse", "gated", "sum", "convex", "weighted"):
        raise planner.refuse(node, f"fn = {node['fn']} has no kernel yet")
    needs_lse = node.word("fn") == "lse"
    inner = "float32"
    outs = [output(b, needs_lse, inner) for b in outputs]
    lses = [planner.places[b, "lse"] for b in outputs] if needs_lse else []
    gates, gate_fn = _gates(planner, list(branches(node)[1]))
    dims = {"TQ": node.shape[1], "TK": planner.token_length}
    out = planner.temporary(node, "o", node.shape, dtype)
    lse = planner.temporary(node, "lse", node.shape[:3], "float32") if wants_lse else None
    heads, value_dim = (planner.sizes.value(d) for d in node.shape[2:])
    spec = Combine(
        name=f"combine_{out}",
        fn=str(node["fn"]),
        branches=tuple(outs),
        gates=tuple(gates),
        lses=tuple(lses),
        out=out,
        lse=lse,
        heads=heads,
        value_dim=value_dim,
        dtype=dtype,
        gate_fn=planner.close(gate_fn, dims),
        branch_dtypes=_dtypes(planner, outs, inner),
        gate_dtypes=_dtypes(planner, gates, dtype),
    )
    planner.specs[node] = spec
    planner.add(spec, [*outs, *gates, *lses], [out, *([lse] if lse else [])], [node], dims)
    return None


def _gates(planner: Planner, gates: list[Node]) -> tuple[list[str], Expr | None]:
    """The buffers of the gates and the one function applied to all of them, if it is one that the merge applies."""
    functions = {id(g.expr("fn")) for g in gates if g.op is Op.MAP}
    if not all(_absorbs(planner, g) for g in gates) or len(functions) != 1:
        return [planner.input(g) for g in gates], None
    planner.absorbed.update(gates)
    return [planner.input(g.src[0]) for g in gates], gates[0].expr("fn")


def _dtypes(planner: Planner, read: list[str], dtype: str) -> tuple[str, ...]:
    """The dtypes of what is read, where one is not the usual one: a branch that is a result too is rounded."""
    found = tuple(planner.buffers[name].dtype for name in read)
    return () if set(found) <= {dtype} else found


def _absorbs(planner: Planner, gate: Node) -> bool:
    """Whether a merge applies a gate's function itself: of one tensor, and nobody else's if it has a gradient."""
    if gate.op is not Op.MAP or len(gate.src) != 1 or gate["row"] != "none":
        return False
    return planner.readers[gate] == 1 or all(v.src[0] is not gate for v in planner.vjps)
