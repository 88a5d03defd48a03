"""A layer's selector alone: the kernels of its plan that the lists of chosen chunks need, as one call."""

from dataclasses import replace

from torch import Tensor

from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.step import Call
from sparsec.plan.plan import Plan
from sparsec.plan.specs import Selector
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.peak import call_bytes
from sparsec.runtime.ready import Ready
from sparsec.runtime.split import split


def selector_plan(plan: Plan) -> Plan:
    """The kernels before and with the plan's one selector, whose lists are its output."""
    (lists,) = [k.spec.indices for k in plan.kernels if isinstance(k.spec, Selector)]
    return split(replace(plan, outputs=(lists, *plan.outputs)), (lists,)).forward


def selector_ready(compiled: Compiled, inputs: Inputs) -> tuple[Ready, list[Tensor]]:
    """The selector alone worked out for inputs, and those that it takes."""
    dims, dtype = compiled.bind(inputs)
    plan = selector_plan(compiled.plan(dims, dtype))
    names = [b.name for b in plan.buffers if b.role == "input"]
    ready = Ready(plan, dims, [compiled.built(kernel, dims) for kernel in plan.kernels], names)
    return ready, [inputs[name] for name in names]


def selector_call(compiled: Compiled, inputs: Inputs) -> Call:
    """A call that gives the lists int32 [B, T, HKV, slots]."""
    ready, tensors = selector_ready(compiled, inputs)

    def run() -> Tensor:
        return ready(tensors)[0]

    return Call(run, call_bytes(compiled, ready.plan, ready.dims))
