"""Proofs that a variant can be decoded: no query reads what a later token could still change.

A mask shows tokens up to the query's own, or summaries whose window has ended; a list names chunks that have ended, or
is cut by such a mask. What cannot be proved is refused with a sentence.
"""

from __future__ import annotations

from functools import reduce

from sparsec.ir.error import DeclarationError
from sparsec.ir.lengths import lengths
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import origin_of
from sparsec.ir.variant import Variant
from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.polynomial import polynomial
from sparsec.scalar.prove import at_most
from sparsec.scalar.walk import depends_on, postorder, substitute, variables

LAST = var("i_hi")
STREAMED = frozenset({
    Op.INPUT, Op.MAP, Op.PREFIX, Op.TOKENS, Op.SLOTS, Op.SUMMARY, Op.SCORE, Op.BIAS, Op.REDUCE, Op.MASK, Op.TOPK,
    Op.GIVEN, Op.WEIGHTS, Op.ATTEND, Op.LSE, Op.MERGE, Op.STATE, Op.WRITE, Op.RESIDUAL, Op.RECALL,
    Op.SURPRISE, Op.NORM2, Op.ROW_LSE, Op.MIXTURE,
})  # fmt: skip
"""The ops whose meaning a step shares with the forward."""


def check_causal(variant: Variant) -> None:
    """Raises DeclarationError, with what reads the future, where a variant has no decode step."""
    growing = lengths(variant).key_names
    for node in variant.nodes:
        _check_lengths(variant, node)
        _check_captures(variant, node)
        if node.op is Op.AUX:
            raise refusal(variant, node, "is a training signal", "decode the variant without it")
        if node.op not in STREAMED:
            raise refusal(variant, node, "has no decode step yet", "decode tokens, slots, summaries and states")
        if node.op is Op.TOKENS and depends_on(node.shape[1], *(lengths(variant).query_names - growing)):
            raise refusal(variant, node, "remembers what a step computes of its queries", "remember inputs, or maps")
        if node.op is Op.ATTEND and depends_on(node.src[1].shape[1], *growing):
            _check_attend(variant, node)
        elif node.op is Op.TOPK and node["unit"] != "part":  # parts of a state are all there from the start
            _check_topk(variant, node)
        elif node.op is Op.GIVEN:
            _check_given(variant, node)
        elif node.op is Op.WEIGHTS:
            _check_scores(variant, node.src[1], within_forced=True)


def refusal(variant: Variant, node: Node, why: str, fix: str) -> DeclarationError:
    """The error that a node keeps its variant from being decoded."""
    name = variant.names.get(node, node.op.value)
    rule = "a decode step reads only what no later token can change"
    return DeclarationError(f"{node.op.value} {name}", f"`{name}` {why}", rule, fix, origin_of(node))


def _check_lengths(variant: Variant, node: Node) -> None:
    """Nothing computes with the number of queries or keys, which differs from step to step."""
    changing = lengths(variant).names
    for attr, value in node.attrs if node.op is not Op.INPUT else ():
        found = sorted(changing & variables(value).keys()) if isinstance(value, Expr) else []
        if found:
            why = f"reads {', '.join(found)} in its {attr}, which grows from step to step"
            raise refusal(variant, node, why, "write the predicate without the lengths")


def _check_captures(variant: Variant, node: Node) -> None:
    """Captured tensors with a row per token are read at the query's position, the key's or an earlier one."""
    changing, sources = lengths(variant).names, node.captures
    reads = [x for _, value in node.attrs if isinstance(value, Expr) for x in postorder(value) if x.head == "element"]
    for read in reads:
        for dim, index in zip(sources[str(read.value)].shape, read.args, strict=True):
            if depends_on(dim, *changing) and not _by_now(index):
                why = f"reads {read}, which may be a later token's"
                raise refusal(variant, node, why, "read the row of i or j, or one before it")


def _by_now(index: Expr) -> bool:
    """Whether a row is that of the query, the key or the chunk, or one before it."""
    while index.head is Fn.FLOORDIV and isinstance(m := index.args[1].value, int) and m > 0:
        index = index.args[0]
    return any(_up_to(index, var(known)) for known in ("i", "j", "c"))


def _check_attend(variant: Variant, attend: Node) -> None:
    memory, selections = attend.src[1], attend.positional[2:]
    size, stride = window(memory)
    masks = [m for s in selections if s.op is Op.MASK and (m := s.expr("where")) is not None]
    if masks and ends_before(reduce(lambda a, b: a & b, masks), size, stride):
        return
    for chosen in selections:
        if chosen.op is Op.TOPK and size == 1 and _eligible_complete(chosen, chosen.integer("size")):
            return
    rule = "shows keys after the query's own" if size == 1 else f"shows windows of {size} that are not complete"
    raise refusal(variant, attend, rule, "add a causal mask, or eligible = complete_past")


def _check_given(variant: Variant, given: Node) -> None:
    if given.integer("query_block") != 1:
        fix = "give a list per query: query_block = 1"
        raise refusal(variant, given, "shares a list between queries of several steps", fix)


def _check_topk(variant: Variant, topk: Node) -> None:
    if topk.word("scope") == "query_set" or topk.integer("query_block") != 1:
        fix = "choose per token, or choose once and give the list to a variant that takes it"
        raise refusal(variant, topk, "shares a list between queries of several steps", fix)
    _check_scores(variant, topk, within_forced=False)


def _check_scores(variant: Variant, topk: Node, within_forced: bool) -> None:
    """What is ranked (or weighed: then the forced too) has been complete by then."""
    if topk.op is not Op.TOPK or topk["unit"] == "part":
        return
    node, settled, pooled = topk.src[0], False, False
    while node.op in (Op.REDUCE, Op.BIAS):
        if node.op is Op.REDUCE:
            if node.word("over") == "blocks" and node.word("op") == "mean":
                why = "is a mean over the windows that exist, which later tokens add to"
                raise refusal(variant, node, why, "pool by max or sum")
            pooled = pooled or node.word("over") in ("overlap", "blocks")
            settled = settled or _only_settled(node)
        node = node.src[0]
    if node.op is not Op.SCORE:
        raise refusal(variant, topk, "ranks something that is no score of keys", "rank scores")
    if settled:
        return
    if pooled:
        raise refusal(variant, topk, "pools scores of windows that are not complete", "add pre = softmax with visible")
    size, stride = scored(topk, node)
    if not _settled(topk, size, stride, within_forced):
        what = "weighs" if within_forced else "ranks"
        fix = "eligible = complete_past, or force the query's own chunk and give it no weight"
        raise refusal(variant, topk, f"{what} chunks that are not complete by their keys so far", fix)


def _only_settled(reduced: Node) -> bool:
    """Whether a softmax or a pool leaves out what is not complete."""
    visible, node = reduced.expr("visible"), reduced.src[0]
    while node.op in (Op.REDUCE, Op.BIAS):
        node = node.src[0]
    leaves_out = reduced.word("pre") == "softmax" or reduced.word("over") == "blocks"
    if not leaves_out or visible is None or node.op is not Op.SCORE or node.src[1].kind != "memory":
        return False
    return ends_before(as_keys(visible), *window(node.src[1]))


def _settled(topk: Node, size: int, stride: int, within_forced: bool) -> bool:
    """Whether every eligible unit (that is not forced) has ended, and no more than one of the forced has not."""
    eligible, forced = topk.expr("eligible"), topk.expr("forced")
    if eligible is None:
        return False
    if ends_before(as_keys(eligible), size, stride):
        return True
    if within_forced or forced is None or size != stride:
        return False
    started = at_limit(as_keys(eligible), LAST // stride + 1)
    return started and ends_before(as_keys(eligible & negated(forced)), size, stride)


def _eligible_complete(topk: Node, size: int) -> bool:
    eligible = topk.expr("eligible")
    return eligible is not None and ends_before(as_keys(eligible), size, size)


def window(memory: Node) -> tuple[int, int]:
    """Tokens behind a row of a memory, and from one row to the next."""
    return (memory.integer("size"), memory.integer("stride")) if memory.op is Op.SUMMARY else (1, 1)


def scored(topk: Node, score: Node) -> tuple[int, int]:
    """Tokens behind a scored unit: those of the summary's window, or of the chosen unit for plain keys."""
    keys = score.src[1]
    return window(keys) if keys.kind == "memory" else (topk.integer("size"), topk.integer("size"))


def ends_before(where: Expr, size: int, stride: int) -> bool:
    """Whether a predicate over i and j shows only rows j with ``j * stride + size - 1 <= i``."""
    return at_limit(where, LAST + 1 if size == stride == 1 else (LAST + (stride - size + 1)) // stride)


def at_limit(where: Expr, limit: Expr) -> bool:
    """Whether a predicate shows only keys below a limit over ``i_hi``, the position of the last query of a tile."""
    found = key_ranges(where)
    if not isinstance(found, Bounded):
        return False
    here = {"i_lo": LAST}
    ends = [(substitute(r.lo, here), substitute(r.hi, here)) for r in found.ranges]
    return all(_up_to(hi, limit) or at_most(hi, lo) for lo, hi in ends)


def _up_to(a: Expr, b: Expr) -> bool:
    """Whether a <= b, also of quotients by one number: x // m + 1 as (x + m) // m."""
    if a.head is Fn.MINIMUM:
        return any(_up_to(x, b) for x in a.args)
    if a.head is Fn.MAXIMUM:
        return all(_up_to(x, b) for x in a.args)
    (x, m), (y, n) = _quotient(a), _quotient(b)
    return at_most(a, b) or (m == n and at_most(x, y))


def _quotient(value: Expr) -> tuple[Expr, int]:
    """(x + c * m, m) of x // m + c; (value, 1) of anything else."""
    found = polynomial(value)
    rest = found.pop((), 0)
    [(atoms, factor)] = found.items() if len(found) == 1 else [((), 0)]
    if factor != 1 or len(atoms) != 1 or atoms[0].head is not Fn.FLOORDIV:
        return value, 1
    x, m = atoms[0].args
    return (x + rest * int(m.value), int(m.value)) if isinstance(m.value, int) else (value, 1)


def as_keys(predicate: Expr) -> Expr:
    """A predicate over units c as one over keys j."""
    return substitute(predicate, {"c": var("j")})


def negated(predicate: Expr) -> Expr:
    """Not a predicate, with unequal as less or greater, which bounds what it can."""
    if predicate.head is Fn.EQ:
        a, b = predicate.args
        return (a < b) | (b < a)
    if predicate.head is Fn.OR:
        return negated(predicate.args[0]) & negated(predicate.args[1])
    if predicate.head is Fn.AND:
        return negated(predicate.args[0]) | negated(predicate.args[1])
    return ~predicate
