"""Rules of memories, reads and merges. A rule gives what is wrong with a node, or None."""

from __future__ import annotations

from sparsec.ir.align import aligned
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rules_select import Problem, dims, grouped, rank
from sparsec.ir.scores import ONE, clash, has_lse, is_list, stride


def memory(node: Node) -> Problem | None:
    """Keys and values agree in all but their last dim: [B,T,HKV,D], or [M,HKV,D] for slots."""
    learned = node.op is Op.SLOTS and node["origin"] == "learned"
    for source in node.src:
        if wrong := rank(source, 3 if learned else 4):
            return wrong
    shapes = [source.shape[:-1] for source in node.src]
    if any(clash(one, other) for one, other in zip(shapes[0], shapes[-1], strict=True)):
        return Problem(
            " and ".join(dims(s) for s in node.src), "keys and values have one length and one head count", "match"
        )
    return None


def summary(node: Node) -> Problem | None:
    """Windows leave no gap; given summaries come with their tensor."""
    size, stride = node.integer("size"), node.integer("stride")
    if stride > size:
        return Problem(f"size = {size}, stride = {stride}", "windows must leave no gap", f"stride = {size} or less")
    if (node["fn"] == "given") != (len(node.src) == 2):
        return Problem(
            f"fn = {node['fn']}", "fn = given, and it alone, takes the summaries as a source", "add or drop it"
        )
    if node["fields"] == "kv" and node.src[0].shape[4].value == 0:
        return Problem("fields = kv", "this memory has no values", "fields = k")
    return None


def mapped(node: Node) -> Problem | None:
    """Sources broadcast at their last dims, or at their heads; what chooses says how many."""
    if wrong := _chooses(node):
        return wrong
    shapes = aligned(node)
    for one, shape in zip(node.src, shapes, strict=True):
        for other, another in zip(node.src, shapes, strict=True):
            pairs = zip(reversed(shape), reversed(another), strict=False)
            if any(clash(a, b) and ONE not in (a, b) for a, b in pairs):
                return Problem(
                    f"{dims(one)} and {dims(other)}", "dims must be equal or 1, from the last", "match their shapes"
                )
    return None


def _chooses(node: Node) -> Problem | None:
    top, row = node["top"], node["row"]
    if (row == "chosen" and top is None) or (top is not None and row not in ("chosen", "softmax")):
        rule = "row = chosen takes the largest few of a row, row = softmax may, no other does"
        return Problem(f"row = {row}, top = {top}", rule, "row = softmax, top = 8, say")
    sizes = [int(s.shape[-1].value or 0) for s in node.src if s.shape[-1].head == "const"]
    if isinstance(top, int) and any(top > size for size in sizes):
        return Problem(f"top = {top}", f"a row has {min(sizes)} elements", f"top = {min(sizes)} or less")
    return None


def prefix(node: Node) -> Problem | None:
    """One number per token and head."""
    return rank(node.src[0], 3)


def attend(node: Node) -> Problem | None:
    """Queries, keys and selections fit together; what an attribute asks for is there."""
    q, mem, *selections = node.positional
    if wrong := rank(q, 4):
        return wrong
    if clash(q.shape[-1], mem.shape[3]):
        return Problem(
            f"head dims {q.shape[-1]} and {mem.shape[3]}", "queries and keys have one head dim", "name it alike"
        )
    if node["softcap"] is not None and node["softcap"] == 0:
        return Problem(
            f"softcap = {node['softcap']}", "scores are divided by the soft cap", "leave it out, or 30.0, say"
        )
    if mem.shape[4].value == 0:
        return Problem(
            f"{mem.op.value} without values", "attend reads values", "give it v, or fields = kv for a summary"
        )
    if wrong := grouped(q.shape[2], mem.shape[2]):
        return wrong
    for selection in selections:
        if wrong := _fits(selection, mem, q):
            return wrong
    return _per(node, [s for s in selections if is_list(s)]) or _sink(node)


def _fits(selection: Node, mem: Node, q: Node) -> Problem | None:
    if not is_list(selection):
        length = selection.src[0].shape[1]
        if clash(length, mem.shape[1]):
            return Problem(
                f"a mask over {length}, a memory of {mem.shape[1]}", "a mask is over the memory read", "mask it"
            )
        return None
    if selection["unit"] == "part":
        return Problem("unit = part", "parts belong to states", "recall reads states")
    if mem.op is Op.SUMMARY:
        return _whole_rows(selection, mem)
    chunk = mem["chunk"] if mem.op is Op.TOKENS else None
    if selection["unit"] == "chunk" and chunk != selection["size"]:
        value = f"chunks of {selection['size']} tokens chosen, chunk = {chunk} in {mem.op.value}"
        return Problem(value, "chosen chunks are the memory's chunks", f"tokens(k, v) {{chunk = {selection['size']}}}")
    return _shared(selection, mem, q)


def _whole_rows(selection: Node, mem: Node) -> Problem | None:
    """A chosen unit of tokens is a whole number of summaries."""
    size, each = selection.integer("size"), stride(mem)
    if size % each == 0:
        return None
    value = f"units of {size} tokens chosen, a summary every {each}"
    return Problem(value, "a chosen unit holds whole summaries", f"size = {each * -(-size // each)}")


def _shared(selection: Node, mem: Node, q: Node) -> Problem | None:
    """A list belongs to a query head, a key/value head or all of them."""
    heads = selection.shape[2]
    if all(clash(heads, dim) for dim in (q.shape[2], mem.shape[2])) and heads is not ONE:
        return Problem(
            f"a selection of {heads} heads", f"it has H = {q.shape[2]}, HKV = {mem.shape[2]} or 1", "check its scope"
        )
    return None


def _per(node: Node, lists: list[Node]) -> Problem | None:
    weights = node.operands.get("weights")
    if len(lists) > 1:
        return Problem(f"{len(lists)} lists", "an attend takes one list and any masks", "merge two attends instead")
    if (node["per"] == "chunk") != (weights is not None):
        return Problem(
            f"per = {node['per']}", "per = chunk, and it alone, merges chunks by `weights`", "add or drop them"
        )
    if weights is not None and (not lists or lists[0]["unit"] != "chunk"):
        return Problem(
            "per = chunk", "there must be a list of chosen chunks", "select with topk or given, unit = chunk"
        )
    if weights is not None and lists[0].op is Op.GIVEN and lists[0].integer("query_block") > 1:
        value = f"query_block = {lists[0]['query_block']}"
        return Problem(value, "weights belong to one query's list each", "query_block = 1, or per = joint")
    if weights is not None and any(clash(a, b) for a, b in zip(weights.shape, lists[0].shape, strict=False)):
        return Problem(
            f"{dims(weights)} and {dims(lists[0])}", "one weight per chosen chunk", "weights(scores, this selection)"
        )
    return None


def _sink(node: Node) -> Problem | None:
    sink = node.operands.get("sink")
    if (node["sink"] == "given") != (sink is not None):
        return Problem(f"sink = {node['sink']}", "sink = given, and it alone, takes logits [H]", "sink=<tensor [H]>")
    return rank(sink, 1) if sink is not None else None


def lse(node: Node) -> Problem | None:
    """Only a joint softmax has a log-sum-exp."""
    if has_lse(node.src[0]):
        return None
    return Problem(
        node.src[0].op.value, "only a joint softmax or a merge by lse has a log-sum-exp", "per = joint, fn = lse"
    )


def merge(node: Node) -> Problem | None:
    """Branches agree; gates are as many as the function wants."""
    if wrong := _gates(node):
        return wrong
    outputs, gates = branches(node)
    for source in outputs:
        if wrong := rank(source, 4):
            return wrong
        if any(clash(a, b) for a, b in zip(source.shape, outputs[0].shape, strict=True)):
            return Problem(f"{dims(source)} and {dims(outputs[0])}", "branches have one shape", "check H and DV")
    if len(gates) != {"gated": len(outputs), "convex": 1, "weighted": 1}.get(str(node["fn"]), 0):
        return Problem(
            f"{len(outputs)} branches, {len(gates)} gates", f"fn = {node['fn']} wants another number", "count them"
        )
    for gate in gates:
        if wrong := rank(gate, 4 if node["fn"] == "weighted" else 3):
            return wrong
    if node["fn"] == "lse" and not all(has_lse(source) for source in outputs):
        return Problem(
            "fn = lse", "every branch must have a log-sum-exp", "fn = sum or gated, or attends with per = joint"
        )
    return None


def _gates(node: Node) -> Problem | None:
    """The number of gates, told from branches by their rank."""
    ranks, fn = [len(source.shape) for source in node.src], node.word("fn")
    if fn not in ("gated", "convex") or not {*ranks} <= {3, 4}:
        return None
    count, found = ranks.count(4), ranks.count(3)
    wanted = count if fn == "gated" else 1
    if found == wanted:
        return None
    missing = f"{wanted - found} missing" if found < wanted else f"{found - wanted} too many"
    rule = f"fn = {fn} takes one gate [B, TQ, H]{' per branch' if fn == 'gated' else ' in all'}: {missing}"
    names = ", ".join(f"g{n}" for n in range(wanted))
    return Problem(f"{count} branches, {found} gates", rule, f"pass gates {names}, or choose fn = sum")


def branches(merge: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The outputs and the gates among a merge's sources."""
    fn, total = merge["fn"], len(merge.src)
    count = {"gated": (total + 1) // 2, "convex": total - 1, "weighted": total - 1}.get(str(fn), total)
    return merge.src[:count], merge.src[count:]
