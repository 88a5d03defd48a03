"""What each op takes: sources, named operands, captures, attributes with their defaults. One row per op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparsec.ir.node import Value
from sparsec.ir.op import Op
from sparsec.scalar.expr import Kind as ScalarKind

Form = Literal["choice", "int", "float", "flag", "dim", "number", "predicate", "name", "shape"]


class Required:
    """The default of an attribute that must be given."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = Required()


@dataclass(frozen=True, slots=True)
class Attr:
    """One attribute.

    Attributes:
        form: how it is written: one of ``choices``, a literal, an expression over dims ("dim"), or an expression over
            ``index`` and dims that gives a number ("number") or a boolean ("predicate").
        least: the smallest legal int or float.
        optional: whether None is legal.
    """

    form: Form
    default: Value | Required = REQUIRED
    choices: tuple[str, ...] = ()
    index: Mapping[str, ScalarKind] = field(default_factory=dict)
    least: float | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Schema:
    """Sources as (name, legal kinds); a name ending in ? may be left out, one ending in * may be repeated."""

    sources: tuple[tuple[str, tuple[str, ...]], ...]
    operands: tuple[str, ...] = ()
    captures: bool = False
    attrs: Mapping[str, Attr] = field(default_factory=dict)


def _choice(*choices: str, required: bool = False) -> Attr:
    return Attr("choice", REQUIRED if required else choices[0], choices)


def _count(default: Value | Required = REQUIRED, least: int = 1) -> Attr:
    return Attr("int", default, least=least, optional=default is None)


def _number(index: Mapping[str, ScalarKind]) -> Attr:
    return Attr("number", None, index=index, optional=True)


def _predicate(*index: str, required: bool = False) -> Attr:
    return Attr("predicate", REQUIRED if required else None, index=dict.fromkeys(index, "int"), optional=not required)


PAIR: Mapping[str, ScalarKind] = {"score": "float", "b": "int", "h": "int", "i": "int", "j": "int"}
MAPPED: Mapping[str, ScalarKind] = {f"x{n}": "float" for n in range(16)}
_OFF = Attr("flag", False)
_SCALE = Attr("dim", None, optional=True)  # None: rsqrt of the query's last dim, written out by the constructor
_TENSOR, _MEMORY, _STATE, _SCORES, _SELECTION = (
    (kind,) for kind in ("tensor", "memory", "state", "scores", "selection")
)

SCHEMA: dict[Op, Schema] = {
    Op.INPUT: Schema(
        (),
        attrs={"name": Attr("name"), "shape": Attr("shape"), "dtype": _choice("float", "float32", "int32")},
    ),
    Op.MAP: Schema(
        (("x+", _TENSOR),),
        attrs={
            "fn": _number(MAPPED),
            "row": _choice("none", "softmax", "l2norm", "chosen"),
            "top": _count(None),
            "align": _choice("none", "heads"),
        },
    ),
    Op.PREFIX: Schema((("x", _TENSOR),), attrs={"fn": _number(MAPPED)}),
    Op.TOKENS: Schema((("k", _TENSOR), ("v?", _TENSOR)), attrs={"chunk": _count(None)}),
    Op.SLOTS: Schema((("k", _TENSOR), ("v", _TENSOR)), attrs={"origin": _choice("learned", "carried")}),
    Op.SUMMARY: Schema(
        (("memory", _MEMORY), ("given?", _TENSOR)),
        attrs={
            "fn": _choice("mean", "max", "given"),
            "size": _count(),
            "stride": _count(None),
            "fields": _choice("k", "kv"),
        },
    ),
    Op.STATE: Schema(
        (("initial?", _TENSOR),),
        attrs={
            "heads": Attr("dim", "HKV"),
            "rows": Attr("dim", "D"),
            "cols": Attr("dim", "DV"),
            "parts": _count(1),
            "schedule": _choice("single", "fenwick"),
        },
    ),
    Op.WRITE: Schema(
        (("state", _STATE), ("k", _TENSOR), ("v", _TENSOR)),
        ("beta", "decay", "route", "weight", "erase_a", "erase_b"),
        attrs={
            "rule": _choice("additive", "delta"),
            "decay_kind": _choice("none", "scalar", "key", "value", "full"),
            "reads": _choice("decayed", "undecayed"),
            "freeze_unselected": Attr("flag", True),
            "row_topk": _count(None),
            "steps": _count(1),
        },
    ),
    Op.RESIDUAL: Schema(
        (("v", _TENSOR), ("written", _STATE), ("k", _TENSOR)),
        ("gamma",),
        attrs={
            "mode": _choice("post", "pre"),
            "clip": Attr("float", None, least=0, optional=True),
            "renormalise": Attr("flag", True),
        },
    ),
    Op.SURPRISE: Schema((("written", _STATE),)),
    Op.NORM2: Schema((("x", _TENSOR),)),
    Op.ROW_LSE: Schema((("x", _TENSOR),)),
    Op.MASS: Schema(
        (("k", _TENSOR),),
        ("beta", "decay", "route", "weight"),
        attrs={"freeze_unselected": Attr("flag", True), "slot": _count(None, least=0)},
    ),
    Op.EVICT: Schema((("k", _TENSOR), ("v", _TENSOR)), attrs={"keep": _count(), "size": _count()}),
    Op.TRANSFER: Schema(
        (("source", ("memory", "state")), ("target", ("memory", "state"))),
        ("score",),
        attrs={
            "trigger": _choice("leaves_window", "chunk_full", "carry", required=True),
            "by": _choice("all", "score"),
            "size": _count(None),
            "keep": _count(None),
        },
    ),
    Op.SCORE: Schema(
        (("q", _TENSOR), ("keys", ("memory", "tensor", "state"))),
        ("head_weights",),
        attrs={
            "fn": _choice("dot", "cosine", "indexer", "router", "recall_error", "estimator"),
            "scale": _SCALE,
            "detach": _OFF,
            "rounding": _choice("none", "storage"),
        },
    ),
    Op.BIAS: Schema((("scores", _SCORES),), captures=True, attrs={"fn": Attr("number", index=PAIR)}),
    Op.REDUCE: Schema(
        (("scores", _SCORES),),
        attrs={
            "over": _choice("group", "heads", "overlap", "blocks", "queries", required=True),
            "op": _choice("sum", "mean", "max"),
            "pre": _choice("none", "softmax"),
            "visible": _predicate("i", "c"),
            "size": _count(None),
            "stride": _count(None),
            "block": _count(None),
            "importance": Attr("choice", None, ("overlap", "paper_literal"), optional=True),
            "kernel": _count(None),
            "padding": _count(None, least=0),
        },
    ),
    Op.MASK: Schema(
        (("memory", _MEMORY),), captures=True, attrs={"where": _predicate("b", "h", "i", "j", required=True)}
    ),
    Op.TOPK: Schema(
        (("scores", _SCORES),),
        ("within",),
        attrs={
            "k": _count(),
            "slots": _count(None),
            "unit": _choice("chunk", "token", "part"),
            "size": _count(1),
            "scope": _choice("kv_head", "head", "token", "query_set"),
            "query_block": _count(1),
            "eligible": _predicate("i", "c"),
            "forced": _predicate("i", "c"),
            "count_forced": Attr("flag", True),
            "order": _choice("score", "newest", "oldest"),
            "selector_gradient": _choice("none", "through_weights", "straight_through", "kl"),
            "tie": _choice("lowest"),
            "fanout": _count(None),
        },
    ),
    Op.MEMBERS: Schema((("selection", _SELECTION),)),
    Op.GIVEN: Schema(
        (("indices", _TENSOR),),
        ("counts",),
        attrs={
            "unit": _choice("chunk", "token", "part"),
            "size": _count(1),
            "query_block": _count(1),
            "scope": _choice("kv_head", "head", "token"),
            "order": _choice("score", "newest", "oldest"),
        },
    ),
    Op.WEIGHTS: Schema(
        (("scores", _SCORES), ("selection", _SELECTION)),
        attrs={
            "fn": _choice("softmax", "softmax_sink", "stick", "raw", "sigmoid"),
            "renormalise": Attr("flag", True),
        },
    ),
    Op.ATTEND: Schema(
        (("q", _TENSOR), ("memory", _MEMORY), ("selection*", _SELECTION)),
        ("weights", "sink"),
        captures=True,
        attrs={
            "per": _choice("joint", "chunk"),
            "scale": _SCALE,
            "softcap": Attr("float", None, least=0, optional=True),
            "sink": _choice("none", "zero", "given"),
            "bias": _number(PAIR),
            "empty": _choice("zero"),
        },
    ),
    Op.RECALL: Schema(
        (("q", _TENSOR), ("state+", _STATE)),
        ("kappa", "level_bias", "level_gate"),
        attrs={
            "mode": _choice("sum", "state_softmax", "slot_softmax"),
            "when": _choice("after", "before"),
            "read": _choice("active", "all"),
            "renormalise": Attr("flag", True),
            "top": _count(None),
            "slot": _count(None, least=0),
            "turned": Attr("flag", False),
            "scale": Attr("dim", 1.0),
        },
    ),
    Op.MIXTURE: Schema(
        (("q", _TENSOR), ("z+", _TENSOR)),
        ("bias", "gain"),
        attrs={"scale": Attr("dim", 1.0), "top": _count(None), "first": _count(1)},
    ),
    Op.LSE: Schema((("output", _TENSOR),)),
    Op.MERGE: Schema(
        (("x+", _TENSOR),), attrs={"fn": _choice("lse", "gated", "sum", "convex", "weighted", "joint", required=True)}
    ),
    Op.AUX: Schema(
        (("scores", _SCORES), ("selection?", _SELECTION)),
        ("target",),
        attrs={
            "fn": _choice("balance", "kl", "infonce", "mse", required=True),
            "coefficient": Attr("float", 1.0, least=0),
        },
    ),
    Op.VJP: Schema(
        (("primal", ("tensor", "memory", "scores", "selection", "state")), ("cotangent+", ("tensor", "cotangent"))),
        ("lse_grad",),
        attrs={"of": Attr("name"), "capture": Attr("name", None, optional=True)},
    ),
}
"""Every op's row; ``tests/ir`` checks that it is complete and that the constructors agree with it."""
