"""Binding dims: the shapes of actual tensors against the shapes that were declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sparsec.ir.adjoint import cotangent_shape
from sparsec.ir.error import InputError
from sparsec.ir.node import Node, Shape
from sparsec.ir.op import Op
from sparsec.ir.rules_read import branches
from sparsec.ir.rules_state import is_ladder
from sparsec.ir.scores import ceil_div, is_list, key_heads, read_heads, tokens_behind
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import variables


def bind(variant: Variant, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Dim names -> sizes from the shape of every input.

    Raises:
        InputError: a missing or unknown input, a shape that disagrees with another or the declaration, H % HKV != 0.
    """
    _check_names(variant, shapes)
    dims: dict[str, tuple[int, str]] = {}
    for name, spec in variant.inputs.items():
        shape = tuple(shapes[name])
        if len(shape) != len(spec.shape):
            raise InputError(name, f"shape {shape}", f"it is declared {spec}", f"give {len(spec.shape)} dims")
        for dim, size in zip(spec.shape, shape, strict=True):
            _bind_dim(dims, name, dim, size, str(spec))
    env = {name: size for name, (size, _) in dims.items()}
    _check_expressions(variant, shapes, env)
    _check_graph(variant, env)
    return env


def _check_names(variant: Variant, shapes: Mapping[str, Sequence[int]]) -> None:
    for name in variant.inputs:
        if name not in shapes:
            raise InputError(name, "missing", f"{variant.name} takes {', '.join(variant.inputs)}", f"pass {name}=…")
    for name in shapes:
        if name not in variant.inputs:
            raise InputError(name, "unknown", f"{variant.name} has no such input", did_you_mean(name, variant.inputs))


def _bind_dim(dims: dict[str, tuple[int, str]], name: str, dim: Expr, size: int, spec: str) -> None:
    if dim.head == "const" and dim.value != size:
        raise InputError(name, f"dim of {size}", f"the declaration fixes {dim.value}", f"give {dim.value}")
    if dim.head == "var":
        known, first = dims.setdefault(str(dim.value), (size, name))
        if known != size:
            rule = f"{dim.value} is {known} in `{first}` and {size} in `{name}`"
            raise InputError(
                name, f"{dim.value} = {size}", rule, f"give both one {dim.value}, and dims in the order {spec}"
            )


def _check_expressions(variant: Variant, shapes: Mapping[str, Sequence[int]], env: Mapping[str, int]) -> None:
    for name, spec in variant.inputs.items():
        for dim, size in zip(spec.shape, shapes[name], strict=True):
            if dim.head not in ("const", "var") and size != (wanted := value(dim, env)):
                raise InputError(name, f"dim of {size}", f"{dim} is {wanted} here", f"give {wanted}")


def value(dim: Expr, env: Mapping[str, int]) -> int:
    """A dim's size under bound names.

    Raises:
        InputError: a name that occurs only inside expressions, so that no shape says what it is.
    """
    from sparsec.scalar.evaluate import evaluate

    for name in variables(dim):
        if name not in env:
            fix = f"declare an input with the dim {name}"
            raise InputError(str(dim), name, "no input has this dim by itself", fix)
    return int(evaluate(dim, dict(env)))


def _check_graph(variant: Variant, env: Mapping[str, int]) -> None:
    """What the constructors could not decide by name."""
    for node in variant.nodes:
        for dim in _heads(node):
            if value(dim, env) < 1:
                said, rule = f"{dim} = {value(dim, env)}", "heads and head dims are 1 or more"
                raise InputError(_called(variant, node), said, rule, "give at least one of each", "node")
        for one, other, what in _equalities(node):
            if value(one, env) != value(other, env):
                sizes = f"{one} = {value(one, env)}, {other} = {value(other, env)}"
                fix = f"declare the dim {one} as {other}, or give sizes that make them equal"
                raise InputError(_called(variant, node), sizes, f"{what} must agree", fix, "node")
        _check_levels(variant, node, env)
        for heads, shared in _groups(node):
            if value(heads, env) % max(value(shared, env), 1):
                sizes = f"{heads} = {value(heads, env)}, {shared} = {value(shared, env)}"
                rule = f"{heads} must be divisible by {shared}"
                raise InputError(_called(variant, node), sizes, rule, "share each key/value head evenly", "node")


def _called(variant: Variant, node: Node) -> str:
    """The op, and the name where that says more."""
    name = variant.names.get(node, "")
    return node.op.value if name in ("", node.op.value) else f"{node.op.value} {name}"


def _check_levels(variant: Variant, node: Node, env: Mapping[str, int]) -> None:
    """A Fenwick schedule has a level for every token that one reads."""
    if node.op is not Op.RECALL or not is_ladder(node.src[1]):
        return
    tokens, levels = value(node.shape[1], env), node.src[1].src[0].integer("parts")
    needed = max(tokens - 1, 0).bit_length() + 1
    if needed > levels:
        said = f"{node.shape[1]} = {tokens} with {levels} levels"
        rule = f"{levels} levels reach over {1 << levels - 1} tokens"
        raise InputError(_called(variant, node), said, rule, f"declare {needed} levels", "node")


def _heads(node: Node) -> Shape:
    """Heads and head dims of what is scored or read; a memory without values has DV = 0."""
    if node.op is Op.RECALL:
        return node.src[0].shape[2:] + node.src[1].shape[2:]
    if node.op not in (Op.ATTEND, Op.SCORE):
        return ()
    keys = node.src[1].shape
    return node.src[0].shape[2:] + (keys[2:] if node.op is Op.ATTEND else keys[-2:] if len(keys) < 5 else keys[2:4])


def _groups(node: Node) -> Iterator[tuple[Expr, Expr]]:
    if node.op is Op.ATTEND:
        yield node.src[0].shape[2], node.src[1].shape[2]
    if node.op is Op.SCORE and node["fn"] != "indexer":
        yield node.src[0].shape[2], key_heads(node)
    if node.op is Op.WRITE and node.integer("steps") == 1:
        yield node.shape[2], node.src[1].shape[2]
    if node.op is Op.RECALL:
        yield from ((read_heads(node.src[0], bank), bank.shape[2]) for bank in node.positional[1:])


def _equalities(node: Node) -> Iterator[tuple[Expr, Expr, str]]:
    """Dims that must be equal though the declaration writes them differently."""
    for one, other, what in _pairs(node):
        if one is not other:
            yield one, other, what


def fixed(variant: Variant) -> dict[str, Expr]:
    """Dims that the graph makes equal to an expression of others, such as the number of landmarks: TK // 64."""
    found: dict[str, Expr] = {}
    for node in variant.nodes:
        for one, other, _ in _equalities(node):
            for dim, expr in ((one, other), (other, one)):
                if dim.head == "var" and expr.head != "const" and str(dim.value) not in variables(expr):
                    found.setdefault(str(dim.value), expr)
    return found


def _pairs(node: Node) -> Iterator[tuple[Expr, Expr, str]]:
    if node.op in (Op.TOKENS, Op.SLOTS, Op.EVICT) and len(node.src) == 2:
        yield from (
            (a, b, "keys and values") for a, b in zip(node.src[0].shape[:-1], node.src[1].shape[:-1], strict=True)
        )
    if node.op is Op.SCORE:
        q, keys = node.src[:2]
        yield q.shape[3], keys.shape[-1] if keys.kind == "tensor" else keys.shape[3], "head dims"
    if node.op is Op.ATTEND:
        q, memory, *selections = node.positional
        yield q.shape[3], memory.shape[3], "head dims"
        yield from _units(memory, selections)
        for given in (s for s in selections if s.op is Op.GIVEN):
            yield (
                given.shape[1],
                ceil_div(q.shape[1], given.integer("query_block")),
                "rows of lists and blocks of queries",
            )
    if node.op is Op.MERGE:
        outputs, gates = branches(node)
        for source in (*outputs, *(g for g in gates if node["fn"] != "weighted")):
            yield from ((a, b, "branches") for a, b in zip(source.shape, outputs[0].shape, strict=False))
    if node.op is Op.VJP:
        primal, *cotangents = node.positional
        wanted = cotangent_shape(primal, node.word("of"))
        for cotangent in (c for c in cotangents if c.kind == "tensor"):
            yield from ((a, b, "a cotangent and its primal") for a, b in zip(cotangent.shape, wanted, strict=True))
    if node.op in (Op.STATE, Op.WRITE, Op.RECALL):
        yield from _states(node)


def _states(node: Node) -> Iterator[tuple[Expr, Expr, str]]:
    """States fit what they begin with, what is written to them and what reads them; a route is checked by its ids."""
    if node.op is Op.STATE:
        for initial in node.src:
            ahead = 5 - len(initial.shape)
            yield from ((a, b, "initial states") for a, b in zip(initial.shape, node.shape[ahead:], strict=True))
    if node.op is Op.WRITE:
        bank, k, v = node.positional
        yield k.shape[3], bank.shape[3], "states and keys"
        by_value, each = node["decay_kind"] == "value", node.integer("steps") * bank.shape[2]
        yield from ((a, b, "states and values") for a, b in zip(v.shape[2:], (each, bank.shape[4]), strict=True))
        if node.integer("steps") != 1:
            yield k.shape[2], each, "what steps write"
        for name, source in {
            "v": v,
            **{n: x for n, x in node.operands.items() if n not in ("route", "weight")},
        }.items():
            token = (*k.shape[:2], bank.shape[2] if name == "decay" else each)
            yield from ((a, b, "what a token writes") for a, b in zip(source.shape[:3], token, strict=True))
            if name != "v" and len(source.shape) > 3:
                wide = v if by_value and name == "decay" else k
                yield source.shape[3], wide.shape[3], "key dims" if wide is k else "value dims"
    if node.op is Op.RECALL:
        q, *banks = node.positional
        for bank in (b for b in banks if b.op is Op.WRITE):
            if read_heads(q, bank) is not q.shape[2]:
                yield q.shape[2], bank.src[1].shape[2], "queries and keys that states share"
            yield from (
                (a, b, "queries and written tokens") for a, b in zip(q.shape[:2], bank.src[1].shape[:2], strict=True)
            )


def _units(memory: Node, selections: Sequence[Node]) -> Iterator[tuple[Expr, Expr, str]]:
    """Scores with plain keys have as many columns as the memory has chunks."""
    for selection in selections:
        if is_list(selection) and selection.op is Op.TOPK and tokens_behind(selection.src[0]) is None:
            chunks = ceil_div(memory.shape[1], selection.integer("size"))
            yield selection.src[0].shape[-1], chunks, "scored and stored chunks"
