"""A compiled variant: a callable over tensors, whose kernels are built on first use and reused for every length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.ir.variant import Variant
from sparsec.passes.pipeline import PIPELINE, run
from sparsec.plan.build import build_plan
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.sizes import static_names
from sparsec.runtime import bind
from sparsec.runtime.cache import usable
from sparsec.runtime.env import Env
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.ready import Ready
from sparsec.runtime.records import Records, bucket
from sparsec.runtime.target import Target, available, find
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.explain import Explanation


class Compiled:
    """What ``sparsec.compile`` returns.

    Attributes:
        variant: the declaration.
        target: where its kernels run.
        builds: how many kernels were built so far; new lengths do not add to it.
    """

    def __init__(self, variant: Variant, target: Target, cache_dir: Path | None = None) -> None:
        self.variant, self.target = variant, target
        folder = cache_dir or Env().cache_dir
        self.records = Records(folder)
        self.cache_dir = usable(folder)
        self.graph = run(variant, PIPELINE)
        self.builds = 0
        self.schedules: dict[str, Schedule] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._built: dict[tuple[object, ...], BuiltKernel] = {}
        self._calls: dict[tuple[object, ...], Ready] = {}

    def __call__(self, q_offset: int | None = None, **inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run forward on tensors by input name; one output, or a tuple where the variant returns several.

        ``q_offset`` is the position of the first query; by default queries end where the keys end.
        Raises InputError where a name, shape, dtype, device, stride or given index does not fit.
        """
        ready = self._ready(inputs, q_offset)
        bind.check_indices(self.variant, inputs, ready.dims)
        buffers = ready.run(inputs)
        outputs = tuple(buffers[name] for name in ready.plan.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _ready(self, inputs: Mapping[str, Tensor], q_offset: int | None) -> Ready:
        """The call worked out for inputs of these shapes, dtypes, strides and devices, checked once."""
        tensors = [(n, x) for n, x in inputs.items() if hasattr(x, "stride")]
        described = tuple((n, x.shape, x.dtype, x.stride(), x.device) for n, x in tensors)
        key = (described, len(inputs), q_offset, Records.generation, tuple(self.schedules.items()))
        if key not in self._calls:
            dims, dtype = self.bind(inputs, q_offset)
            available(self.target)
            bind.check_devices(inputs, self.target.device)
            plan = self.plan(dims, dtype)
            self._calls[key] = Ready(plan, dims, [self.built(kernel, dims) for kernel in plan.kernels])
        return self._calls[key]

    def bind(self, inputs: Mapping[str, Tensor], q_offset: int | None = None) -> tuple[dict[str, int], str]:
        """The concrete dims (with ``q_offset``) and the dtype of a call."""
        from sparsec.ir.dims import bind as bind_dims

        bind.check_names(self.variant, inputs)
        dims = dict(bind_dims(self.variant, {n: tuple(x.shape) for n, x in inputs.items()}))
        queries, keys = dims.get("TQ", dims.get("T", 0)), dims.get("TK", dims.get("T", 0))
        dims["q_offset"] = keys - queries if q_offset is None else q_offset
        return dims, bind.call_dtype(self.variant, inputs)

    def plan(self, dims: Mapping[str, int], dtype: str) -> Plan:
        """The plan for the static dims (heads, head dims) among ``dims``."""
        static = {n: dims[n] for n in sorted(static_names(self.graph.parameters)) if n in dims}
        key = (dtype, *static.items())
        if key not in self._plans:
            self._plans[key] = build_plan(self.variant.name, self.graph.outputs, self.graph.names, static, dtype)
        return self._plans[key]

    def run_plan(self, plan: Plan, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> dict[str, Tensor]:
        """All buffers after every kernel has been launched."""
        return Ready(plan, dims, [self.built(kernel, dims) for kernel in plan.kernels]).run(inputs)

    def source(self, dims: Mapping[str, int], dtype: str = "float32") -> str:
        """The sources of all kernels of the plan for these dims, each program under a heading; needs no device.

        A length bucket may have its own tuned schedule, so lengths matter here; without them the defaults are shown.
        """
        from sparsec.lower.registry import lower_kernel
        from sparsec.runtime.launch import source

        plan, parts = self.plan(dims, dtype), []
        for kernel in plan.kernels:
            schedule = self.schedule(kernel, dims)
            for step in lower_kernel(kernel.spec, schedule).steps:
                heading = f"# {kernel.name}: {step.program.name} for {self.target.name}\n# {schedule}\n"
                parts.append(heading + source(step, self.target))
        return "\n\n".join(parts)

    def explain(self, dims: Mapping[str, int], dtype: str = "float32", resources: bool = False) -> Explanation:
        """Formulas, memory, tiles and predicted times at these dims; needs no device. See ``sparsec explain``."""
        from sparsec.runtime.explain import explain

        return explain(self, {"q_offset": dims.get("TK", 0) - dims.get("TQ", 0), **dims}, dtype, resources)

    def tune(self, inputs: Mapping[str, Tensor], **options: Any) -> Any:
        """Find better schedules for inputs like these -> ``Report``; see ``sparsec.autotune.tune`` for the options."""
        from sparsec.autotune import tune

        return tune(self, inputs, **options)

    def schedule(self, kernel: Kernel, dims: Mapping[str, int]) -> Schedule:
        """The schedule of a kernel: set by hand, else the best record, else the default."""
        from sparsec.lower.registry import default

        if kernel.name in self.schedules:
            return self.schedules[kernel.name]
        return self.records.best(kernel.spec, self.target, bucket(dims)) or default(kernel.spec, self.target.name)

    def built(self, kernel: Kernel, dims: Mapping[str, int], schedule: Schedule | None = None) -> BuiltKernel:
        """A kernel built under its schedule (or under the one given), from memory where it was built before."""
        chosen = schedule or self.schedule(kernel, dims)
        key = (kernel.spec, chosen)
        if key not in self._built:
            self._built[key] = BuiltKernel(kernel, chosen, self.target, self.cache_dir)
            self.builds += 1
        return self._built[key]


def compile(variant: Variant, target: str | Target = "auto", cache_dir: Path | None = None) -> Compiled:
    """Compile a variant for "auto", "cpu", "cuda" or a named target; ready to call in seconds, without a tuner.

    Raises TargetError for a target that does not exist.
    """
    return Compiled(variant, find(target), cache_dir)
