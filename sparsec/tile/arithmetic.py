"""Scalar functions on torch tensors, as tile programs mean them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsec.scalar.fn import Fn
from sparsec.tile.language import EMPTY_KEY

_ID_BITS = 31
_ID_MASK = (1 << _ID_BITS) - 1
_SIGN = 1 << 31
_NAN = 0x7FC00000


def rank(score: Tensor, index: Tensor) -> Tensor:
    """The int64 key of a candidate that is not forced; see ``sparsec.tile.language.EMPTY_KEY``.

    NaN ranks highest whatever its sign: a processor's own, such as that of inf - inf, has the sign bit set on x86.
    """
    score = score.to(torch.float32)
    bits = torch.where(score == score, (score + 0.0).view(torch.int32), _NAN)
    monotone = (bits ^ ((bits >> 31) | -_SIGN)).to(torch.int64) & 0xFFFFFFFF
    return (monotone << _ID_BITS) | (_ID_MASK - index.to(torch.int64)) | EMPTY_KEY


def rank_id(key: Tensor) -> Tensor:
    """The id in a key; -1 for the empty key."""
    field = key & _ID_MASK
    return torch.where(field == 0, -1, _ID_MASK - field).to(torch.int32)


def rank_score(key: Tensor) -> Tensor:
    """The fp32 score in a key."""
    monotone = (key >> _ID_BITS) & 0xFFFFFFFF
    bits = torch.where(monotone >= _SIGN, monotone - _SIGN, -1 - monotone)
    return bits.to(torch.int32).view(torch.float32)


def wide(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function rounded from fp64: torch's own in fp32 give the last elements of a tensor other bits than the rest."""
    return lambda x: function(x.double()).to(x.dtype)


FUNCTIONS: dict[Fn, Callable[..., Tensor]] = {
    Fn.ADD: torch.add,
    Fn.SUB: torch.sub,
    Fn.MUL: torch.mul,
    Fn.DIV: torch.div,
    Fn.TRUNCDIV: lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    Fn.TRUNCMOD: torch.fmod,
    Fn.NEG: torch.neg,
    Fn.ABS: torch.abs,
    Fn.MINIMUM: torch.minimum,
    Fn.MAXIMUM: torch.maximum,
    Fn.EXP: torch.exp,
    Fn.EXP2: wide(torch.exp2),
    Fn.LOG: torch.log,
    Fn.LOG2: torch.log2,
    Fn.SQRT: torch.sqrt,
    Fn.RSQRT: torch.rsqrt,
    Fn.TANH: torch.tanh,
    Fn.SIGMOID: wide(torch.sigmoid),
    Fn.LT: torch.lt,
    Fn.LE: torch.le,
    Fn.EQ: torch.eq,
    Fn.NE: torch.ne,
    Fn.AND: torch.bitwise_and,
    Fn.OR: torch.bitwise_or,
    Fn.NOT: torch.bitwise_not,
    Fn.WHERE: torch.where,
    Fn.XOR: torch.bitwise_xor,
    Fn.SHL: torch.bitwise_left_shift,
    Fn.SHR: torch.bitwise_right_shift,
    Fn.RANK: rank,
    Fn.RANK_ID: rank_id,
    Fn.RANK_SCORE: rank_score,
}
"""Every function a tile program may use; ``FLOORDIV`` and ``MOD`` belong to expressions."""


def tf32(x: Tensor) -> Tensor:
    """fp32 rounded to 10 bits of mantissa, ties away from zero, which tensor cores read as it is."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
