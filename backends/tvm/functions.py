"""Scalar functions as vector code: polynomials where the library call would take the vector apart.

Every function lets NaN through. Where two numbers meet in ``T.max`` or ``T.min``, the second one's NaN survives.
Relative errors: exp2, exp and tanh 1.2e-7 plus rounding, log and log2 1e-9 plus rounding. Results below 2^-126 are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsec.backends.tvm.storage import spread, typed
from sparsec.scalar.fn import Fn
from sparsec.tile.language import EMPTY_KEY

EXP2 = (1.0, 0.6931469775914985, 0.2402224208035849, 0.05550733754243352, 0.00967151286977615, 0.0013264723894095727)
EXP = (1.0, 1.0, 0.4999923176204943, 0.1666711445212023, 0.0418901162532084, 0.008312526962710681)
LOG2 = (2.8853900799172245, 0.9617988104632896, 0.5767169372489581, 0.43168673674795904)
TANH = (
    1.0,
    -0.33333281942774984,
    0.13331442214847686,
    -0.053739716266270825,
    0.020639090619918914,
    -0.005704990372511686,
)
ROUND = 12582912.0 + 127.0
"""Adding 1.5 * 2^23 rounds to an integer in the low bits; the 127 is the exponent's bias."""
ROOT_HALF_BITS = 0x3F3504F3
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860677e-06
SIGN, LOW, ID, NAN = -(2**31), 0xFFFFFFFF, 0x7FFFFFFF, 0x7FC00000
"""The sign bit, the low half of an int64, the bits of an id in a rank key, and those of a NaN without a sign."""


class Bind(Protocol):
    """Names a text."""

    def __call__(self, text: str, stem: str = "v", dtype: str = "", width: int = 1) -> str: ...


def number(value: float, dtype: str) -> str:
    """A scalar constant."""
    if dtype == "bool":
        return f"T.bool({bool(value)})"
    if not dtype.startswith("float"):
        return str(int(value)) if dtype == "int32" else f"T.{dtype}({int(value)})"
    plain = float(value)
    return f"T.{dtype}({plain!r})" if math.isfinite(plain) else f'T.{dtype}("{plain}")'


@dataclass(frozen=True, slots=True)
class Vector:
    """Prints functions of vectors with ``width`` lanes; ``bind`` names a text, see ``Kernel.bind``."""

    bind: Bind
    width: int

    def named(self, text: str) -> str:
        """A float32 under a new name."""
        return self.bind(text, dtype="float32", width=self.width)

    def real(self, value: float) -> str:
        """A float32 in every lane."""
        return spread(number(value, "float32"), self.width)

    def whole(self, value: int, dtype: str = "int32") -> str:
        """An integer in every lane."""
        return spread(number(value, dtype), self.width)

    def bits(self, text: str) -> str:
        """The int32 with the bits of a float32."""
        return f'T.reinterpret("{typed("int32", self.width)}", {text})'

    def from_bits(self, text: str) -> str:
        """The float32 with the bits of an int32."""
        return f'T.reinterpret("{typed("float32", self.width)}", {text})'

    def cast(self, text: str, dtype: str) -> str:
        """Converted to another dtype."""
        return f'T.Cast("{typed(dtype, self.width)}", {text})'

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        """The polynomial with these coefficients, lowest first, by Horner's rule."""
        text = self.real(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            text = f"({text} * {x} + {self.real(c)})"
        return text

    def scaled(self, p: str, rounded: str, x: str, lowest: float) -> str:
        """``p * 2^n`` for the n in the low bits of ``rounded``; 0 where ``x`` is below ``lowest``."""
        power = self.from_bits(f"T.shift_left({self.bits(rounded)}, {self.whole(23)})")
        return self.named(f"T.Select({x} < {self.real(lowest)}, {self.real(0.0)}, {p} * {power})")

    def exp2(self, text: str) -> str:
        """2 to the x."""
        x = self.named(f"T.min({self.real(128.0)}, {text})")
        rounded = self.named(f"{x} + {self.real(ROUND)}")
        rest = self.named(f"{x} - ({rounded} - {self.real(ROUND)})")
        return self.scaled(self.polynomial(rest, EXP2), rounded, x, -126.0)

    def exp(self, text: str) -> str:
        """e to the x."""
        x = self.named(f"T.min({self.real(89.0)}, {text})")
        rounded = self.named(f"{x} * {self.real(1 / math.log(2))} + {self.real(ROUND)}")
        n = self.named(f"{rounded} - {self.real(ROUND)}")
        rest = self.named(f"{x} - {n} * {self.real(LN2_HIGH)} - {n} * {self.real(LN2_LOW)}")
        return self.scaled(self.polynomial(rest, EXP), rounded, x, -87.3365)

    def log2(self, text: str) -> str:
        """The logarithm to base two; minus infinity at 0, NaN below."""
        x = self.named(text)
        tiny = f"{x} < {self.real(2.0**-126)}"
        y = self.named(f"T.Select({tiny}, {x} * {self.real(2.0**23)}, {x})")
        e = self.bind(f"T.shift_right({self.bits(y)} - {self.whole(ROOT_HALF_BITS)}, {self.whole(23)})")
        m = self.named(self.from_bits(f"{self.bits(y)} - T.shift_left({e}, {self.whole(23)})"))
        s = self.named(f"({m} - {self.real(1.0)}) / ({m} + {self.real(1.0)})")
        square = self.named(f"{s} * {s}")
        shift = f"T.Select({tiny}, {self.real(-23.0)}, {self.real(0.0)})"
        log = self.named(f"{self.polynomial(square, LOG2)} * {s} + ({self.cast(e, 'float32')} + {shift})")
        edge = f"T.Select({x} == {self.real(0.0)}, {self.real(-math.inf)}, {self.real(math.nan)})"
        inside = f"T.Select({x} < {self.real(math.inf)}, {log}, {x})"
        return self.named(f"T.Select({x} > {self.real(0.0)}, {inside}, {edge})")

    def tanh(self, text: str) -> str:
        """The hyperbolic tangent: a polynomial near 0, through exp elsewhere."""
        x = self.named(text)
        size = self.named(self.magnitude(x))
        square = self.named(f"{x} * {x}")
        near = self.named(f"{x} * {self.polynomial(square, TANH)}")
        far = self.named(f"{self.real(1.0)} - {self.real(2.0)} / ({self.exp(f'{size} + {size}')} + {self.real(1.0)})")
        signed = f"T.Select({x} < {self.real(0.0)}, {far} * {self.real(-1.0)}, {far})"
        return self.named(f"T.Select({size} < {self.real(0.625)}, {near}, {signed})")

    def sigmoid(self, text: str) -> str:
        """1 / (1 + e^-x)."""
        return self.named(f"{self.real(1.0)} / ({self.real(1.0)} + {self.exp(f'{self.real(0.0)} - {text}')})")

    def root(self, x: str) -> str:
        """The square root."""
        kind = f"v{self.width}f32" if self.width > 1 else "f32"
        return f'T.call_llvm_pure_intrin("{typed("float32", self.width)}", "llvm.sqrt.{kind}", {x})'

    def magnitude(self, x: str) -> str:
        """|x| of a float32: the sign bit cleared."""
        return self.from_bits(f"T.bitwise_and({self.bits(x)}, {self.whole(0x7FFFFFFF)})")

    def extreme(self, fn: str, x: str, y: str) -> str:
        """max or min of named float32 values, NaN if either is."""
        return f"T.Select({x} == {x}, T.{fn}({x}, {y}), {x})"

    def round_bfloat16(self, text: str) -> str:
        """The nearest bfloat16, ties to even, as a float32."""
        x = self.named(text)
        b = self.bind(self.bits(x))
        tie = f"T.bitwise_and(T.shift_right({b}, {self.whole(16)}), {self.whole(1)})"
        high = self.from_bits(f"T.bitwise_and({b} + {self.whole(0x7FFF)} + {tie}, {self.whole(-65536)})")
        return self.named(f"T.Select({x} == {x}, {high}, {x})")

    def rank(self, score: str, index: str) -> str:
        """The int64 key of a score and an id: see ``sparsec.tile.language.EMPTY_KEY``."""
        x = self.named(f"{score} + {self.real(0.0)}")
        b = self.bind(f"T.Select({x} == {x}, {self.bits(x)}, {self.whole(NAN)})")
        flip = f"T.bitwise_or(T.shift_right({b}, {self.whole(31)}), {self.whole(SIGN)})"
        ordered = f"T.bitwise_and({self.cast(f'T.bitwise_xor({b}, {flip})', 'int64')}, {self.whole(LOW, 'int64')})"
        high = f"T.shift_left({ordered}, {self.whole(31, 'int64')})"
        low = self.cast(f"{self.whole(ID)} - {index}", "int64")
        return self.bind(f"T.bitwise_or(T.bitwise_or({high}, {low}), {self.whole(EMPTY_KEY, 'int64')})")

    def rank_id(self, key: str) -> str:
        """The id in a key; -1 of the empty one."""
        low = f"T.bitwise_and({key}, {self.whole(ID, 'int64')})"
        field = self.bind(self.cast(low, "int32"))
        return f"T.Select({field} == {self.whole(0)}, {self.whole(-1)}, {self.whole(ID)} - {field})"

    def rank_score(self, key: str) -> str:
        """The score in a key."""
        m = self.bind(self.cast(f"T.shift_right({key}, {self.whole(31, 'int64')})", "int32"))
        flip = f"T.bitwise_or(T.bitwise_not(T.shift_right({m}, {self.whole(31)})), {self.whole(SIGN)})"
        return self.from_bits(f"T.bitwise_xor({m}, {flip})")


def is_special(fn: Fn) -> bool:
    """Whether a function is one of ``Vector``'s methods."""
    return hasattr(Vector, fn.value)
