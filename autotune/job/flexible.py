"""A plan as one FlexAttention call: a mask and a score function as Python text, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from sparsec.plan.plan import Plan, Refusal
from sparsec.plan.specs import BlockList, GatheredAttention, Piece, TiledAttention
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.functions import where
from sparsec.scalar.text import to_text
from sparsec.scalar.walk import substitute

SEVERAL = "it joins several softmaxes, and one FlexAttention call has one"
PER_CHUNK = "it has a softmax inside each chosen chunk, and FlexAttention has one softmax over all keys"
GIVEN = "blocks are given with every call, and FlexAttention's block mask is made from a function of positions"
CHOSEN = "what a query reads depends on scores, and FlexAttention's block mask is made before them"


@dataclass(frozen=True, slots=True)
class FlexForm:
    """What FlexAttention needs to compute a plan.

    Attributes:
        keys, values: inputs to put one after another along the tokens; slots come first.
        source: Python text that defines ``mask_mod`` and, if ``scored``, ``score_mod``.
        captures: tensors that the text reads.
    """

    spec: TiledAttention
    keys: tuple[str, ...]
    values: tuple[str, ...]
    source: str
    scored: bool
    captures: tuple[str, ...]


def flex_form(plan: Plan, lengths: Mapping[str, int]) -> FlexForm | Refusal:
    """The FlexAttention form of a plan; ``lengths`` are launch parameters (key lengths, ``q_offset``)."""
    kernels = [k.spec for k in plan.kernels if not isinstance(k.spec, BlockList)]
    spec = kernels[0]
    for found in kernels:
        if isinstance(found, GatheredAttention):
            return Refusal(PER_CHUNK if found.per == "chunk" else CHOSEN)
    if any(p.listed is not None and p.listed.given for p in getattr(spec, "pieces", ())):
        return Refusal(GIVEN)
    if len(kernels) > 1 or not isinstance(spec, TiledAttention):
        return Refusal(SEVERAL)
    if spec.sink is not None:
        return Refusal("its softmax has a sink logit without a key, and FlexAttention's has none")
    pieces = sorted(spec.pieces, key=lambda p: p.size is None)
    captures = tuple(c.name for p in pieces for c in p.captures)
    source, scored = _source(spec, pieces, lengths)
    return FlexForm(spec, tuple(p.k for p in pieces), tuple(p.v for p in pieces), source, scored, captures)


def _source(spec: TiledAttention, pieces: list[Piece], lengths: Mapping[str, int]) -> tuple[str, bool]:
    """The text of both functions, and whether there is a score function; one piece's keys stand behind another's."""
    ends = list(accumulate(lengths[p.length] for p in pieces))
    starts = [0, *ends[:-1]]
    seen = [_seen(p, start, end, lengths) for p, start, end in zip(pieces, starts, ends, strict=True)]
    text = f"def mask_mod(b, h, i, j):\n    return {' | '.join(seen)}\n"
    if spec.softcap is None and not any(p.bias is not None for p in pieces):
        return text, False
    score = _biased(pieces[-1], starts[-1], lengths)
    for piece, start, end in reversed([*zip(pieces, starts, ends, strict=True)][:-1]):
        score = where(var("j") < end, _biased(piece, start, lengths), score)
    capped = "" if spec.softcap is None else f"    score = {spec.softcap} * tanh(score / {spec.softcap})\n"
    return f"{text}\n\ndef score_mod(score, b, h, i, j):\n{capped}    return {to_text(score)}\n", True


def _seen(piece: Piece, start: int, end: int, lengths: Mapping[str, int]) -> str:
    inside = [f"(j >= {start})", f"(j < {end})"]
    shown = [] if piece.where is None else [f"({to_text(_moved(piece.where, start, lengths))})"]
    return f"({' & '.join(inside + shown)})"


def _biased(piece: Piece, start: int, lengths: Mapping[str, int]) -> Expr:
    return var("score") if piece.bias is None else _moved(piece.bias, start, lengths)


def _moved(expr: Expr, start: int, lengths: Mapping[str, int]) -> Expr:
    """An expression over a piece's own key positions, over those of all pieces together; queries are counted from 0."""
    offset = lengths["q_offset"]
    known = {name: constant(size) for name, size in lengths.items()}
    places = {"j": var("j") - start if start else var("j"), "i": var("i") + offset if offset else var("i")}
    return substitute(expr, {**known, **places})


def functions(form: FlexForm, captured: Mapping[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """``mask_mod`` and ``score_mod`` (None without a bias) as Python functions over torch tensors."""
    space: dict[str, Any] = {**_names(), **captured}
    exec(compile(form.source, "<flex form>", "exec"), space)
    return space["mask_mod"], space.get("score_mod")


UNARY = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "abs")


def _names() -> dict[str, Any]:
    """The scalar functions of the text; a number may stand beside a tensor."""
    import torch

    def pick(compare: Callable[..., Any], a: Any, b: Any) -> Any:
        return torch.where(compare(a, b), a, b) if isinstance(a, torch.Tensor) else torch.where(compare(b, a), b, a)

    least, most = partial(pick, torch.lt), partial(pick, torch.gt)
    return {name: getattr(torch, name) for name in UNARY} | {"where": torch.where, "minimum": least, "maximum": most}
