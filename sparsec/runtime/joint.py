"""The plan of a variant with its gradients, cut in two, and which tensor goes where in the halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from sparsec.ir.error import DeclarationError
from sparsec.ir.variant import Variant
from sparsec.lower.registry import CLASSES
from sparsec.passes.differentiate import differentiate
from sparsec.plan.build import build_plan
from sparsec.plan.plan import Plan, PlanError
from sparsec.plan.sizes import static_names
from sparsec.runtime.across import fitted
from sparsec.runtime.split import Split, split
from sparsec.runtime.target import Target

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Whole:
    """A joint plan before it is cut.

    Attributes:
        inputs: of the variant, by name.
        seeds: per output of the variant the input that is its gradient; None where none of the gradients depends on it.
        gradients: per input of ``wrt`` the gradient's buffer; None is exactly zero.
    """

    plan: Plan
    inputs: tuple[str, ...]
    seeds: tuple[str | None, ...]
    gradients: Mapping[str, str | None]
    dtype: str


@dataclass(frozen=True, slots=True)
class Joint:
    """A variant's outputs and the gradients of some inputs as two plans.

    Attributes:
        dtype: of the "float" tensors.
        outputs: positions of the variant's outputs among the forward half's results; the rest is saved.
        kept_inputs, kept_results: positions of what the backward half reads among the inputs and the forward results.
        cotangents: positions of the outputs whose gradients it reads; ``differentiable`` of those it depends on.
        places: per cotangent all positions of its output, which may be given more than once.
        names: of what the backward half reads, in the order kept inputs, kept results, cotangents.
        gradients: per input of ``wrt`` the gradient's buffer; None is exactly zero.
        wanted: whether any gradient is not zero; ``direct`` where the backward half returns just these, in order.
    """

    split: Split
    dtype: str
    outputs: tuple[int, ...]
    kept_inputs: tuple[int, ...]
    kept_results: tuple[int, ...]
    cotangents: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    differentiable: frozenset[int]
    names: tuple[str, ...]
    gradients: Mapping[str, str | None]
    wanted: bool
    direct: bool
    whole: Whole

    @property
    def buffers(self) -> list[str]:
        """The buffers of the gradients that are not zero, in order."""
        return [name for name in self.gradients.values() if name is not None]

    def given(self, results: Sequence[Tensor]) -> list[Tensor]:
        """The variant's outputs; copied where one is given twice, since autograd tells outputs apart as objects."""
        found = [results[n] for n in self.outputs]
        if len({*self.outputs}) == len(found):
            return found
        return [
            x.clone() if n in self.outputs[:place] else x
            for place, (n, x) in enumerate(zip(self.outputs, found, strict=True))
        ]

    def pulled(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """What the backward half reads of the gradients of the outputs: sums where an output is given twice."""
        return [
            grads[first].resolve_neg()
            if not more
            else reduce(add, [grads[n] for n in more], grads[first]).resolve_neg()
            for first, *more in self.places
        ]

    def by_input(self, found: Sequence[Tensor]) -> dict[str, Tensor | None]:
        """The gradients that are not zero, in order, as those of ``wrt``."""
        left = iter(found)
        return {name: None if buffer is None else next(left) for name, buffer in self.gradients.items()}


def joint(
    graph: Variant,
    wrt: Sequence[str],
    static: Mapping[str, int],
    dtype: str,
    target: Target | None = None,
) -> Joint:
    """Differentiate a graph, plan it and cut the plan.

    Args:
        static: sizes by name, with those of heads and head dims among them.
        target: of dense calls, which are fitted to it.

    Raises:
        PlanError: no gradient or no kernel for something on the way; the message says what and how to go on without.
    """
    try:
        found = differentiate(graph, wrt)
        dims = {n: int(static[n]) for n in sorted(static_names(found.variant.parameters)) if n in static}
        plan = build_plan(graph.name, found.variant.outputs, found.variant.names, dims, dtype)
        plan = plan if target is None else fitted(plan, target)
        _lowered(plan)
    except (DeclarationError, PlanError) as error:
        way = "call it under torch.no_grad(), or detach these inputs"
        said = f"{str(error).rstrip('.')}. Without gradients: {way}"
        raise PlanError(f"{graph.name} has no backward for {', '.join(wrt)}: {said}") from error
    count, left = len(graph.outputs), iter(plan.outputs[len(graph.outputs) :])
    gradients = {name: None if node is None else next(left) for name, node in found.gradients.items()}
    seeds = tuple(found.cotangents.get(node) for node in graph.outputs)
    return halved(Whole(plan, tuple(graph.inputs), seeds, gradients, dtype), count)


def halved(whole: Whole, count: int) -> Joint:
    """The halves of a joint plan whose first ``count`` outputs are the variant's."""
    plan, inputs, seeds, gradients = whole.plan, list(whole.inputs), whole.seeds, whole.gradients
    cut = split(plan, plan.outputs[:count])
    reads = {b.name for b in cut.backward.buffers if b.role == "input"} | {*plan.outputs[count:]}
    results = list(dict.fromkeys(cut.forward.outputs))
    outputs = tuple(results.index(name) for name in plan.outputs[:count])
    kept_inputs = tuple(n for n, name in enumerate(inputs) if name in reads)
    kept_results = tuple(n for n, name in enumerate(results) if name in cut.saved)
    read = [name for name in dict.fromkeys(seeds) if name in reads and name is not None]
    places = tuple(tuple(n for n, seed in enumerate(seeds) if seed == name) for name in read)
    cotangents = tuple(first for first, *_ in places)
    names = [inputs[n] for n in kept_inputs] + [results[n] for n in kept_results]
    names += read
    differentiable = frozenset(n for n, name in enumerate(seeds) if name is not None)
    made = [name for name in gradients.values() if name is not None]
    direct = made == list(dict.fromkeys(cut.backward.outputs))
    return Joint(
        cut, whole.dtype, outputs, kept_inputs, kept_results, cotangents, places, differentiable, tuple(names),
        gradients, bool(made), direct, whole,
    )  # fmt: skip


def _lowered(plan: Plan) -> None:
    """Raises PlanError where the plan has a kernel that nothing lowers."""
    for kernel in plan.kernels:
        if type(kernel.spec) not in CLASSES:
            raise PlanError(f"`{kernel.name}`: no schedule class lowers {type(kernel.spec).__name__} yet.")
