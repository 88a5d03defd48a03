"""Packed calls of a compiled variant: documents of any lengths one after the other, by ``cu_seqlens``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparsec.ir.dims import bind as bind_dims
from sparsec.plan.packed.layout import TABLE, TOTAL, layout
from sparsec.plan.packed.plan import packed_plan, packing_of
from sparsec.plan.plan import Plan
from sparsec.runtime import bind
from sparsec.runtime.joint import Joint
from sparsec.runtime.packed.batch import batched, unbatched
from sparsec.runtime.packed.documents import Documents, Face, Given
from sparsec.runtime.ready import Ready
from sparsec.runtime.records import Records
from sparsec.runtime.split import Split
from sparsec.runtime.target import available
from sparsec.scalar.evaluate import evaluate

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled
    from sparsec.runtime.packed.training import PackedTraining


class PackedCalls:
    """What a compiled variant needs for packed calls; made with the first.

    Attributes:
        layouts: of each input, in the declared order; None for one that all documents share.
        results: of each output; one without tokens, such as a last state, has an entry per document.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.compiled, variant = compiled, compiled.variant
        self.packing = packing_of(variant, compiled.lengths)
        shapes = {name: tuple(self.packing.of(d) for d in spec.shape) for name, spec in variant.inputs.items()}
        layouts = {name: layout(shape, self.packing) for name, shape in shapes.items()}
        self.face = Face(variant.name, self.packing, shapes, layouts, compiled.lengths.keys is not None)
        self.layouts, self.shapes = list(layouts.values()), list(shapes.values())
        self.results = [layout([self.packing.of(d) for d in x.shape], self.packing) for x in variant.outputs]
        self._plans: dict[int, tuple[Plan, Plan]] = {}
        self._halves: dict[int, tuple[Joint, Joint]] = {}

    @cached_property
    def training(self) -> PackedTraining:
        """Packed calls with gradients."""
        from sparsec.runtime.packed.training import PackedTraining

        return PackedTraining(self)

    def __call__(self, tensors: Sequence[Tensor], given: Given) -> Tensor | tuple[Tensor, ...]:
        """The variant's outputs for packed inputs in the declared order. Raises InputError."""
        documents = self.documents(tensors, given)
        run = self.training.forward if self.compiled._route.differentiated(tensors) else self.forward
        outputs = run(tensors, documents)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def documents(self, tensors: Sequence[Tensor], given: Given) -> Documents:
        """The documents of a call. Raises InputError."""
        return self.face.documents(self.compiled.names, tensors, given)

    def forward(self, tensors: Sequence[Tensor], documents: Documents) -> Sequence[Tensor]:
        """The outputs without a thought of gradients."""
        views = self.views(tensors)
        ready = self.ready(views, documents)
        made = ready([*views, documents.table])
        return [unbatched(made[n], at) for n, at in zip(ready.order, self.results, strict=True)]

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Packed inputs as kernels take them: with a batch of one."""
        return [batched(x, at) for x, at in zip(tensors, self.layouts, strict=True)]

    def ready(self, views: Sequence[Tensor], documents: Documents, wrt: tuple[str, ...] = ()) -> Ready:
        """A call worked out; with the halves of the joint plan where gradients of ``wrt`` are wanted."""
        compiled = self.compiled
        described = [(x.shape, x.stride(), x.dtype, x.device, x.is_neg()) for x in views]
        modes = (Records.generation, compiled._route.deterministic())
        key = ("packed", documents.count, documents.most, wrt, *modes, *described)
        call = compiled._calls.get(key)
        if call is None or call.schedules != compiled.schedules:
            inputs = dict(zip(compiled.names, views, strict=True))
            dims, dtype = self.bind(inputs, documents)
            available(compiled.target)
            bind.check_devices(inputs, compiled.target.device)
            halves = self.halves(compiled.training.joint(dims, dtype, wrt, packed=True)) if wrt else None
            plan = halves.split.forward if halves else self.plan(compiled.plan(dims, dtype, packed=True))
            found = bind.index_rules(compiled.variant, dims)
            rules = tuple((r, tuple(map(compiled.names.index, r.names))) for r in found)
            call = compiled._keep(key, plan, dims, (*compiled.names, TABLE), rules)
            call.ready.halves = halves
        for rule, positions in call.rules:
            rule(*[views[n] for n in positions])
        return call.ready

    def backward(self, halves: Joint, tensors: Sequence[Tensor], dims: Mapping[str, int]) -> Ready:
        """The backward half worked out for what it reads, in the order of its names, and the table."""
        return self.compiled.backward(halves, tensors, dims, (TABLE,))

    def plan(self, plan: Plan) -> Plan:
        """The packed plan of a plan."""
        if id(plan) not in self._plans:
            self._plans[id(plan)] = (plan, packed_plan(plan, self.packing))
        return self._plans[id(plan)][1]

    def halves(self, joint: Joint) -> Joint:
        """The packed halves of a joint plan."""
        if id(joint) not in self._halves:
            cut = Split(self.plan(joint.split.forward), self.plan(joint.split.backward), joint.split.saved)
            self._halves[id(joint)] = (joint, replace(joint, split=cut))
        return self._halves[id(joint)][1]

    def bind(self, views: Mapping[str, Tensor], documents: Documents) -> tuple[dict[str, int], str]:
        """The dims of a packed call and its dtype. Raises InputError where a shape does not fit."""
        variant, face = self.compiled.variant, self.face
        longest = dict(zip(("TQ", "TK"), documents.most, strict=True))
        shapes = {}
        for name, x in views.items():
            at, sizes = face.layouts[name], list(x.shape)
            if at is not None and at.along is not None:
                extent = face.shapes[name][at.along]
                sizes[at.batch], sizes[at.along] = documents.count, int(evaluate(extent, longest))
            shapes[name] = tuple(sizes)
        totals = self.totals(list(views.values()))
        dims = dict(bind_dims(variant, shapes)) | {"B": documents.count, **longest, "q_offset": 0, **totals}
        return dims, bind.call_dtype(variant, views)

    def totals(self, views: Sequence[Tensor]) -> dict[str, Any]:
        """The rows of all documents in packed inputs with a batch of one, by the length that they count."""
        found: dict[str, Any] = {f"{TOTAL}TQ": 0, f"{TOTAL}TK": 0}
        for x, at, shape in zip(views, self.layouts, self.shapes, strict=True):
            if at is not None and at.along is not None:
                extent = shape[at.along]
                column = str(extent.value) if extent.head == "var" else self.packing.visible.index(extent)
                found[f"{TOTAL}{column}"] = x.shape[at.along]
        return found | ({f"{TOTAL}TK": found[f"{TOTAL}TQ"]} if self.face.shared else {})
