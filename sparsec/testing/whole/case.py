"""One call of a whole variant, as plain values: what is run, at which sizes, in which layout, under which schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from sparsec.ir.variant import Variant, dim_names
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs
from sparsec.testing.inputs.layouts import laid_out
from sparsec.testing.inputs.numbers import turned
from sparsec.testing.inputs.styles import set_style
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.chain import Link, links


@dataclass(frozen=True, slots=True)
class WholeCase:
    """A case of the proof suite.

    Attributes:
        variant: a name of ``sparsec.testing.inputs.variants.NAMES``.
        lengths: queries, keys, and the position of the first query; None puts the last query at the last key.
        heads: query heads and key/value heads.
        dims: of keys and of values.
        layout: a name of ``sparsec.testing.inputs.layouts.LAYOUTS``.
        style: a name of ``sparsec.testing.inputs.styles.STYLES``; empty for the target's own defaults.
        numbers: a name of ``sparsec.testing.inputs.numbers.NUMBERS``.
    """

    variant: str
    lengths: tuple[int, int, int | None] = (67, 67, None)
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (32, 32)
    dtype: str = "float32"
    batch: int = 1
    layout: str = "bthd"
    style: str = ""
    numbers: str = "normal"

    @property
    def name(self) -> str:
        """Everything that tells it from other cases, in one word."""
        (tq, tk, offset), (h, hkv), (d, dv) = self.lengths, self.heads, self.dims
        at = "" if offset is None else f"@{offset}"
        sizes = f"{tq}x{tk}{at}-h{h}.{hkv}-d{d}.{dv}-{self.dtype}-b{self.batch}"
        rest = [
            self.layout,
            *([self.style] if self.style else []),
            *([] if self.numbers == "normal" else [self.numbers]),
        ]
        return "-".join([self.variant, sizes, *rest])

    def inputs(self, device: str = "cpu") -> dict[str, Tensor]:
        """Random inputs; the same ones every time."""
        declared, (h, hkv), (d, dv) = _variant(self.variant), self.heads, self.dims
        tq, tk, _ = self.lengths
        sizes = {"B": self.batch, "TQ": tq, "TK": tk, "H": h, "HKV": hkv, "D": d, "DV": dv, "DR": 32}
        sizes |= {"L": tq, "S": tk, "TM": tk // 2 + 3}
        known: dict[str, Any] = {name: size for name, size in sizes.items() if name in dim_names(declared)}
        drawn = inputs(declared, dtype=self.dtype, seed=_seed(self), **known)
        return {name: x.to(device) for name, x in laid_out(turned(drawn, self.numbers), self.layout).items()}

    def links(self, compiled: Compiled, device: str = "cpu") -> Iterator[Link]:
        """The chain of trust of this case on a compiled variant."""
        drawn, offset = self.inputs(device), self.lengths[2]
        if self.style:
            set_style(compiled, self.style, *compiled.bind(drawn, offset))
        yield from links(compiled, drawn, offset)

    def wrong(self, target: str = "interpreter", device: str = "cpu") -> list[str]:
        """What is wrong, link by link, in sentences; empty if nothing is."""
        found = self.links(on(self.variant, target), device)
        return [f"{link.upper} = {link.lower}: {link.sentence}" for link in found if not link.ok]


@cache
def _variant(name: str) -> Variant:
    return small(name)


@cache
def on(name: str, target: str) -> Compiled:
    """A small variant compiled for a target; kept, so that a kernel is built once per process."""
    return compile(_variant(name), target=target)


def _seed(case: WholeCase) -> int:
    return sum(ord(letter) * (n + 1) for n, letter in enumerate(case.name)) % 2**31
