"""Whole joint plans, kernel by kernel in the tile interpreter: outputs and gradients are the oracle's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.ir.dims import bind
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.oracle import Chosen, Verdict, check
from sparsec.oracle.error import Quantity
from sparsec.oracle.evaluate import Evaluation
from sparsec.passes.differentiate import Differentiated, differentiate
from sparsec.passes.pipeline import run
from sparsec.plan.build import build_plan
from sparsec.plan.grad_specs import AnySpec, GradSpec
from sparsec.plan.plan import Plan
from sparsec.plan.selection.signal_specs import Divergence
from sparsec.plan.sizes import static_names
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.scalar.fn import Fn
from sparsec.testing.inputs.styles import STYLES
from sparsec.testing.inputs.variants import NAMES, small
from sparsec.testing.mistakes.mutants import Args, mutated
from sparsec.testing.whole.case import WholeCase
from sparsec.testing.whole.chain import poisoned
from sparsec.tile import build as tile
from sparsec.tile.build import FLOATS
from sparsec.tile.language import Node, TileOp
from sparsec.tile.schedule import Schedule

HSA = ["hsa", "hsa-softmax-sink", "hsa-mean", "hsa-window", "hsa-window-sum"]
PRESETS = [*HSA, "full", "streaming", "msa-window", "longformer", "bigbird", "nsa", "moba", "infllm2"]
LEFT_OUT = {"head-weights": "sink"}
"""Variant -> the input whose gradient no kernel computes yet."""


@dataclass(frozen=True)
class Joint:
    """A variant with its gradients, and the plan for one set of heads and dtype."""

    made: Differentiated
    plan: Plan

    def inputs(self, case: WholeCase) -> dict[str, Tensor]:
        """The inputs of the forward, and random gradients of the outputs."""
        found, graph = case.inputs(), self.made.variant
        dims = dict(bind(small(case.variant), {name: tuple(x.shape) for name, x in found.items()}))
        generator = torch.Generator().manual_seed(1)
        for node in graph.parameters:
            if (name := str(node["name"])) not in found:
                buffer = self.plan.buffer(name)
                drawn = torch.randn(buffer.size(dims), generator=generator)
                found[name] = drawn.to(getattr(torch, buffer.dtype))
        return found


@cache
def joint(variant: str, heads: tuple[int, int], dims: tuple[int, int], dtype: str) -> Joint:
    """The joint plan of a small variant."""
    graph = run(small(variant))
    wrt = [str(n["name"]) for n in graph.parameters if n.dtype != "int32" and n["name"] != LEFT_OUT.get(variant)]
    made = differentiate(graph, wrt)
    sizes = {"H": heads[0], "HKV": heads[1], "D": dims[0], "DV": dims[1], "DR": 32, "HI": 16, "DI": 16}
    static = {n: sizes[n] for n in static_names(made.variant.parameters) if n in sizes}
    return Joint(made, build_plan(variant, made.variant.outputs, made.variant.names, static, dtype))


def launched(case: WholeCase, folder: Path) -> tuple[Joint, dict[str, Tensor], dict[str, int]]:
    """All buffers after every kernel, those that are written full of NaN before; and the dims of the call."""
    found = joint(case.variant, case.heads, case.dims, case.dtype)
    inputs = found.inputs(case)
    dims = dict(bind(found.made.variant, {name: tuple(x.shape) for name, x in inputs.items()}))
    offset = case.lengths[2]
    dims["q_offset"] = case.lengths[1] - case.lengths[0] if offset is None else offset
    buffers = poisoned(found.plan, inputs, dims)
    for kernel in found.plan.kernels:
        BuiltKernel(kernel, STYLES[case.style or "gpu"](kernel.spec), INTERPRETER, folder).run(buffers, dims)
    return found, buffers, dims


def verdicts(case: WholeCase, folder: Path) -> dict[str, Verdict]:
    """Every output and gradient against the oracle, with the lists that the kernels chose."""
    found, buffers, dims = launched(case, folder)
    graph = found.made.variant
    known = {node: buffers[str(node["name"])] for node in graph.parameters}
    exact = {node: x.double() if x.is_floating_point() else x for node, x in known.items()}
    chosen = {
        node: Chosen(buffers[name].long(), node.integer("size"))
        for kernel in found.plan.kernels
        for name, node, part in kernel.results
        if part == "indices"
    }
    ev = Evaluation({**exact, **chosen}, dims, "vector", dims["q_offset"], torch.device("cpu"), case.lengths[0])
    values = {node for name, node in found.made.gradients.items() if name.startswith("v")}
    given = small(case.variant).outputs
    kinds: list[Quantity] = ["o" if n < len(given) or g in values else "grad" for n, g in enumerate(graph.outputs)]
    return {
        name: check(buffers[name], ev.tensor(node), case.dtype, kind)
        for name, node, kind in zip(found.plan.outputs, graph.outputs, kinds, strict=True)
    }


def agrees(case: WholeCase, folder: Path) -> None:
    """Hold outputs and gradients to the bounds of their dtype."""
    found = verdicts(case, folder)
    assert len(found) > 1
    assert not {name: verdict.sentence for name, verdict in found.items() if not verdict}


@pytest.mark.parametrize("name", NAMES)
def test_every_variant(name: str, tmp_path: Path) -> None:
    agrees(WholeCase(name, (51, 51, None)), tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_rounded_to_bfloat16(name: str, tmp_path: Path) -> None:
    agrees(WholeCase(name, (51, 51, None), dtype="bfloat16"), tmp_path)


@pytest.mark.parametrize("name", ["hsa", "hsa-window", "nsa", "msa-window"])
def test_rounded_to_float16(name: str, tmp_path: Path) -> None:
    agrees(WholeCase(name, (35, 35, None), dtype="float16", style="cpu"), tmp_path)


@pytest.mark.parametrize("name", ["hsa", "hsa-mean", "hsa-window", "nsa-given", "moba", "infllm2"])
@pytest.mark.parametrize(
    "case",
    [
        WholeCase("", (3, 19, None), (3, 1)),
        WholeCase("", (17, 17, None), (2, 2), batch=2, layout="bhtd", style="cpu"),
        WholeCase("", (13, 53, None), (3, 1), (48, 80), style="flipped"),
        WholeCase("", (33, 17, None), (4, 2), layout="inset"),  # 16 queries come before the first key
    ],
    ids=lambda case: case.name,
)
def test_lengths_heads_and_layouts(name: str, case: WholeCase, tmp_path: Path) -> None:
    agrees(replace(case, variant=name), tmp_path)


def one_percent_more(node: Node, args: Args) -> Args | None:
    """Every number that a kernel writes."""
    if node.op is not TileOp.STORE or node.dtype not in FLOATS:
        return None
    more = tile.apply(Fn.MUL, tile.cast(args[-1], "float32"), 1.01)
    return (*args[:-1], tile.cast(more, node.dtype))


PROVED = ("hsa-mean", "fox", "dsa-kl", "dsa-warm", "straight", "straight-weights")
BACKWARD = [
    (name, kernel.spec)
    for name in PROVED
    for kernel in joint(name, (4, 2), (32, 32), "float32").plan.kernels
    if isinstance(kernel.spec, GradSpec | Divergence) or getattr(kernel.spec, "kind", "") == "slope"
]
"""All but what is made relative to its own sum afterwards."""


@pytest.mark.parametrize(("variant", "spec"), BACKWARD, ids=lambda found: getattr(found, "name", found))
def test_every_backward_kernel_counts(
    variant: str, spec: AnySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower(asked: AnySpec, schedule: Schedule) -> Lowered:
        right = lower_kernel(asked, schedule)
        return mutated(right, one_percent_more) if asked == spec else right

    monkeypatch.setattr("sparsec.runtime.kernel.lower_kernel", lower)
    found = verdicts(WholeCase(variant, (51, 51, None)), tmp_path)
    assert not all(found.values())
