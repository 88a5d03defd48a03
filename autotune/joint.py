"""A variant with its gradients as something to tune: the joint variant, and random gradients of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import torch

from sparsec.autotune.rows import sampled_rows
from sparsec.ir.dims import value
from sparsec.ir.lengths import lengths
from sparsec.passes.differentiate import differentiate
from sparsec.plan.grad_specs import GradSpec
from sparsec.plan.plan import Kernel
from sparsec.runtime.compiled import Compiled

if TYPE_CHECKING:
    from torch import Tensor


SHARED = ("target", "together", "records", "cache_dir", "_schedules", "_route")
"""What a joint variant has from the compiled one; the rest follows from its own graph or belongs to calls by name."""


class Joint(Compiled):
    """The joint variant of a compiled one, which shares its target, records and schedules; it is planned, not called.

    Attributes:
        own: the inputs of the variant itself; the joint variant's others are gradients of outputs.
    """

    own: frozenset[str]

    @classmethod
    def of(cls, compiled: Compiled, wrt: Sequence[str] | None) -> Joint:
        """The outputs, and the gradients of the inputs ``wrt``, or of all. Raises as ``differentiate`` does."""
        made = differentiate(compiled.graph, wrt)
        joint = cls.__new__(cls)
        joint.__dict__.update({name: getattr(compiled, name) for name in SHARED})
        joint.variant = joint.graph = made.variant
        joint.own, joint.names = frozenset(compiled.variant.inputs), tuple(made.variant.inputs)
        joint.lengths, joint.builds = lengths(made.variant), 0
        joint._plans, joint._built, joint._calls = {}, {}, {}
        return joint

    def with_cotangents(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the variant -> with normal random gradients of its outputs."""
        first = next(x for x in inputs.values() if x.is_floating_point())
        sizes = [(node, inputs[str(node["name"])].shape) for node in self.variant.parameters if node["name"] in inputs]
        dims = {
            str(d): size for node, shape in sizes for d, size in zip(node.shape, shape, strict=True) if d.head == "var"
        }
        generator = torch.Generator(first.device).manual_seed(1)
        found = dict(inputs)
        for node in self.variant.parameters:
            if (name := str(node["name"])) not in found:
                drawn = torch.randn([value(d, dims) for d in node.shape], generator=generator, device=first.device)
                found[name] = drawn.to(first.dtype if node.dtype == "float" else torch.float32)
        return found


def is_backward(kernel: Kernel) -> bool:
    """Whether a kernel computes gradients."""
    return isinstance(kernel.spec, get_args(GradSpec))


def on_sampled_rows(joint: Joint, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with gradients of outputs that are zero but on a few query rows.

    What then reaches queries, keys and values is exact to compute at any length: only those rows are differentiated.
    """
    found = dict(inputs)
    for name in inputs.keys() - joint.own:
        x = inputs[name]
        rows = sampled_rows(x.shape[1], x.device)
        found[name] = torch.zeros_like(x).index_copy(1, rows, x.index_select(1, rows))
    return found
