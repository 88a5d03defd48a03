"""What a size leaves untested: choices among too few, masks that show everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from sparsec.ir.dims import value
from sparsec.ir.op import Op
from sparsec.ir.predicates import causal
from sparsec.ir.variant import Variant
from sparsec.oracle import kept_mass
from sparsec.oracle.values import OracleError


def idle(variant: Variant, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> str:
    """Why these dims test no choice of the variant, and what would; "" where something is left out."""
    found = [*choices(variant, dims), *_masks(variant, inputs, dims)]
    what = "smaller knobs or a longer T would"
    return f"these dims put no choice to the test: {', '.join(found)}; {what}" if found else ""


def choices(variant: Variant, dims: Mapping[str, int]) -> Iterator[str]:
    """Each top-k of the variant that takes all there is at these dims."""
    for node in variant.nodes:
        if node.op is Op.TOPK and value(node.src[0].shape[3], dims) <= (slots := node.integer("slots")):
            yield f"`{variant.names[node]}` takes up to {slots} of {value(node.src[0].shape[3], dims)}"


def _masks(variant: Variant, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> Iterator[str]:
    """Masks that hide tokens at some length, but none of the earlier ones at this."""
    where = [node.expr("where") for node in variant.nodes if node.op is Op.MASK]
    if all(mask is causal() for mask in where):
        return
    try:
        kept = kept_mass(variant, inputs, q_offset=dims["q_offset"]).mean
    except OracleError:  # no attend over tokens
        return
    if kept > 1 - 1e-9:
        yield "every query sees all earlier tokens"
