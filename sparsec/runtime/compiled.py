"""A compiled variant: a callable over tensors, whose kernels are built on first use and reused for every length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.ir.error import DeclarationError
from sparsec.ir.lengths import lengths, position
from sparsec.ir.variant import Variant, dim_names
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import default
from sparsec.passes.pipeline import PIPELINE, run
from sparsec.plan.build import build_plan
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.sizes import static_names
from sparsec.runtime import bind
from sparsec.runtime.across import Together, fitted, launched, whole
from sparsec.runtime.cache import usable
from sparsec.runtime.decode.face import Decoding
from sparsec.runtime.deterministic import in_order
from sparsec.runtime.env import Env
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.known import MOST_CALLS, MOST_PLANS, Call, room
from sparsec.runtime.native.tables import Tables
from sparsec.runtime.ready import Ready
from sparsec.runtime.records import Records, bucket
from sparsec.runtime.target import Target, available, find
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.explain import Explanation
    from sparsec.runtime.joint import Joint
    from sparsec.runtime.packed.calls import PackedCalls
    from sparsec.runtime.training import Training


class Compiled(Decoding):
    """What ``sparsec.compile`` returns.

    Attributes:
        variant: the declaration.
        target: where its kernels run.
        lengths: which of its dims count queries and keys.
        names: of the inputs, in the declared order.
        operator: what tracing sees of a call; see ``sparsec.runtime.operator``.
        builds: how many kernels were built so far; new lengths do not add to it.
    """

    def __init__(self, variant: Variant, target: Target, cache_dir: Path | None = None) -> None:
        from sparsec.runtime import route
        from sparsec.runtime.operator import packed_operator, packed_rows, register

        self.variant, self.target, self.together = variant, target, Together()
        folder = cache_dir or Env().cache_dir
        self.records, self.cache_dir = Records(folder), usable(folder)
        self.graph = run(variant, PIPELINE)
        self.lengths, self.builds = lengths(variant), 0
        self._schedules: dict[str, Schedule] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._built: dict[tuple[object, ...], BuiltKernel] = {}
        self._calls: dict[tuple[object, ...], Call] = {}
        self.tables = Tables(tuple(variant.inputs), self._schedules, target.device, self.cache_dir)
        self.names = tuple(variant.inputs)
        self._floats = [spec.dtype == "float" for spec in variant.inputs.values()]
        self._route, self.operator = route, register(self)
        self.packed_operator, self.packed_rows = packed_operator(self), packed_rows(self)

    def __repr__(self) -> str:
        inputs = (f"{name} [{','.join(map(str, spec.shape))}]" for name, spec in self.variant.inputs.items())
        return f"<sparsec {self.variant.name} on {self.target.name}: {', '.join(inputs)}>"

    def __call__(
        self, q_offset: Any = None, *nameless: Tensor, cu_seqlens: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None, max_seqlen_q: Any = None, max_seqlen_k: Any = None, **inputs: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        """Run forward on tensors by input name; one output, or a tuple where the variant returns several.

        ``q_offset`` is the position of the first query; by default queries end where the keys end. With ``cu_seqlens``
        (int32: 0, then the end of every document) inputs are packed, ``[tokens, heads, dim]``, and ``q_offset`` may be
        a tensor of one position per document; see "Packed sequences" in docs/reference.md.
        Raises InputError where a name, shape, dtype, device, stride or given index does not fit.
        """
        if nameless:
            bind.refuse_nameless(self.variant, (q_offset, *nameless), inputs)
        self._route.refuse_tangents(inputs)
        if not self._route.compiling() and cu_seqlens is None and cu_seqlens_k is None:
            if q_offset is not None and type(q_offset) is not int:
                q_offset = position(q_offset)  # a tensor may be changed: calls are recognised by its value
            straight = self.tables.straight
            if straight is not None and (done := straight(inputs, q_offset)) is not None:
                return done
        try:
            tensors: Sequence[Tensor] = [inputs[name] for name in self.names]
        except KeyError:
            tensors = []
        if len(tensors) != len(inputs):
            bind.check_names(self.variant, inputs)
        tensors = self._route.autocast(tensors, self._floats)
        if cu_seqlens is not None or cu_seqlens_k is not None:
            given = (cu_seqlens, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q_offset)
            made: Tensor | tuple[Tensor, ...] = self._route.packed(self, tensors, given)
            return made
        if self._route.traced(tensors):
            bind.check_names(self.variant, inputs)
            found = self.operator(*tensors, q_offset)
            return tuple(found) if isinstance(found, list | tuple) else found
        run = self.training.forward if self._route.differentiated(tensors) else self.forward
        outputs = run(tensors, q_offset)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __deepcopy__(self, memo: dict[int, object]) -> Compiled:
        """Itself: a copied model shares its kernels."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as what was compiled; kernels are built or found again where it is read."""
        return compile, (self.variant, self.target, self.records.folder.parent)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Schedules by kernel, in place of tuned and default ones."""
        return self._schedules

    @schedules.setter
    def schedules(self, given: Mapping[str, Schedule]) -> None:
        new = dict(given)
        self._schedules.clear()  # the tables of repeated calls compare this very dict
        self._schedules.update(new)

    @cached_property
    def training(self) -> Training:
        """The variant with its gradients."""
        from sparsec.runtime.training import Training

        return Training(self)

    @cached_property
    def packed(self) -> PackedCalls:
        """The variant over packed documents. Raises PlanError for a declaration that cannot be packed."""
        from sparsec.runtime.packed.calls import PackedCalls

        return PackedCalls(self)

    def forward(self, tensors: Sequence[Tensor], q_offset: int | None = None) -> Sequence[Tensor]:
        """The variant's outputs for inputs in the declared order, without a thought of gradients or tracing."""
        ready = self.ready(tensors, q_offset)
        outputs = ready(tensors)
        return outputs if ready.distinct else [outputs[n] for n in ready.order]

    def ready(self, tensors: Sequence[Tensor], q_offset: int | None = None, wrt: tuple[str, ...] = ()) -> Ready:
        """The call of these inputs, in the declared order, worked out and checked; saving for gradients of ``wrt``."""
        call: Call | None = self.tables.find(wrt, tensors, q_offset)
        if call is None:
            call = self._known(tensors, q_offset, wrt)
            self.tables.keep(wrt, tensors, q_offset, call)
        for rule, positions in call.rules:
            rule(*[tensors[n] for n in positions])
        return call.ready

    def _known(self, tensors: Sequence[Tensor], q_offset: int | None, wrt: tuple[str, ...]) -> Call:
        """The call of these inputs as it was worked out before, or now."""
        described: list[object] = [q_offset, wrt, Records.generation, self._route.deterministic()]
        for x in tensors:
            described += (x.shape, x.stride(), x.dtype, x.device, x.is_neg())
        key = tuple(described)
        call = self._calls.get(key)
        if call is None or call.schedules != self.schedules:
            call = self._work_out(key, tensors, q_offset, wrt)
        return call

    def _work_out(
        self, key: tuple[object, ...], tensors: Sequence[Tensor], q_offset: int | None, wrt: tuple[str, ...]
    ) -> Call:
        """A call with tensors of these shapes, dtypes, strides and devices, checked once."""
        inputs = dict(zip(self.names, tensors, strict=True))
        dims, dtype = self.bind(inputs, q_offset)
        available(self.target)
        bind.check_devices(inputs, self.target.device)
        halves = self.training.halves(dims, dtype, wrt) if wrt else None
        rules = tuple((r, tuple(map(self.names.index, r.names))) for r in bind.index_rules(self.variant, dims))
        call = self._keep(key, halves.split.forward if halves else self.plan(dims, dtype), dims, self.names, rules)
        call.ready.halves = halves
        return call

    def backward(
        self, halves: Joint, tensors: Sequence[Tensor], dims: Mapping[str, int], beside: tuple[str, ...] = ()
    ) -> Ready:
        """The backward half of a joint plan worked out for what it reads, in the order of its names and ``beside``."""
        kind, lengths = (id(halves), beside), tuple(dims.values())
        call: Call | None = self.tables.find(kind, tensors, lengths)
        if call is None:
            call = self._known_backward(halves, tensors, dims, beside)
            self.tables.keep(kind, tensors, lengths, call)
        return call.ready

    def _known_backward(
        self, halves: Joint, tensors: Sequence[Tensor], dims: Mapping[str, int], beside: tuple[str, ...]
    ) -> Call:
        described = [(x.shape, x.stride(), x.dtype, x.device) for x in tensors]
        key = (id(halves), Records.generation, self._route.deterministic(), *dims.values(), *described)
        call = self._calls.get(key)
        if call is None or call.schedules != self.schedules:
            call = self._keep(key, halves.split.backward, dims, (*halves.names, *beside))
            call.ready.halves = halves  # which keeps its id its own
        return call

    def _keep(
        self, key: tuple[object, ...], plan: Plan, dims: Mapping[str, int], names: Sequence[str],
        rules: tuple[tuple[bind.IndexRule, tuple[int, ...]], ...] = (),
    ) -> Call:  # fmt: skip
        room(self._calls, MOST_CALLS)
        self._calls[key] = call = Call(Ready(*whole(self, plan, dims), names), dict(self.schedules), rules)
        return call

    def bind(self, inputs: Mapping[str, Tensor], q_offset: int | None = None) -> tuple[dict[str, int], str]:
        """The concrete dims (with ``q_offset``) and the dtype of a call."""
        from sparsec.ir.dims import bind as bind_dims

        bind.check_names(self.variant, inputs)
        dims = dict(bind_dims(self.variant, {n: tuple(x.shape) for n, x in inputs.items()}))
        dims["q_offset"] = self.lengths.offset(dims) if q_offset is None else position(q_offset)
        return dims, bind.call_dtype(self.variant, inputs)

    def plan(self, dims: Mapping[str, int], dtype: str, packed: bool = False) -> Plan:
        """The plan for the heads and head dims among ``dims``, that of ``packed`` calls apart. Raises InputError."""
        names = sorted(static_names(self.graph.parameters))
        bind.check_dims(self.variant, dims, names)
        static = {n: dims[n] for n in names}
        key = (dtype, packed, *static.items())
        if key not in self._plans:
            room(self._plans, MOST_PLANS)
            plan = build_plan(self.variant.name, self.graph.outputs, self.graph.names, static, dtype)
            self._plans[key] = plan if packed else fitted(plan, self.target)
        return self._plans[key]

    def run_plan(self, plan: Plan, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> dict[str, Tensor]:
        """All buffers after every kernel has been launched."""
        return Ready(plan, dims, [self.built(kernel, dims) for kernel in plan.kernels]).run(inputs)

    def source(self, dims: Mapping[str, int], dtype: str = "float32") -> str:
        """The sources of all kernels of the plan for these dims, each program under a heading; needs no device.

        A length bucket may have its own tuned schedule, so lengths matter here; without them the defaults are shown.
        """
        from sparsec.runtime.source import source

        return source(self, dims, dtype)

    def explain(self, dims: Mapping[str, int], dtype: str = "float32", resources: bool = False) -> Explanation:
        """Formulas, memory, tiles and predicted times at these dims; needs no device. See ``sparsec explain``."""
        from sparsec.runtime.explain import explain

        bind.check_dims(self.variant, dims, sorted(dim_names(self.variant)))
        return explain(self, {"q_offset": self.lengths.offset(dims), **dims}, dtype, resources)

    def tune(self, inputs: Mapping[str, Tensor], **options: Any) -> Any:
        """Find better schedules for inputs like these -> ``Report``; see ``sparsec.autotune.tune`` for the options."""
        from sparsec.autotune import tune

        return tune(self, inputs, **options)

    def preferred(self, kernel: Kernel, dims: Mapping[str, int]) -> Schedule:
        """The schedule of a kernel: set by hand, else the best record, else the default."""
        length, packed = bucket(self.lengths.longest(dims)), kernel.packed is not None
        found = self.schedules.get(kernel.name) or self.records.best(kernel.spec, self.target, length, packed)
        return found or default(kernel.spec, self.target.name)

    def schedule(self, kernel: Kernel, dims: Mapping[str, int]) -> Schedule:
        """The preferred schedule of a kernel, or a deterministic one where torch asks for it."""
        found = self.preferred(kernel, dims)
        return in_order(kernel.spec, found, self.target.name) if self._route.deterministic() else found

    def built(
        self, kernel: Kernel, dims: Mapping[str, int], schedule: Schedule | None = None, own: Lowered | None = None
    ) -> BuiltKernel:
        """A kernel under its schedule (or that given), built once; ``own`` are its programs if not all of these."""
        chosen = schedule or self.schedule(kernel, dims)
        key = (kernel.spec, chosen, kernel.packed, own and launched(own))
        if key not in self._built:
            room(self._built, MOST_PLANS)
            self._built[key] = BuiltKernel(kernel, chosen, self.target, self.cache_dir, own)
            self.builds += 1
        return self._built[key]


def compile(variant: Variant, target: str | Target = "auto", cache_dir: str | Path | None = None) -> Compiled:
    """Compile a variant for "auto", "cpu", "cuda" or a named target; ready to call in seconds, without a tuner.

    Raises TargetError for a target that does not exist, DeclarationError for what is no variant.
    """
    if not isinstance(variant, Variant):
        raise DeclarationError("compile", repr(variant), "it takes a variant", "sparsec.preset(…) or sparsec.load(…)")
    return Compiled(variant, find(target), None if cache_dir is None else Path(cache_dir))
