"""Programs whose launch parameters have other names, so that programs of several scans may be steps of one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparsec.lower.lowered import Lowered, Step
from sparsec.scalar.expr import var
from sparsec.scalar.walk import substitute
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accessed, rewrite


def called(lowered: Lowered, ending: str) -> Lowered:
    """The programs with an ending to the name of every launch parameter that they need beyond the spec's."""
    names = {name: f"{name}_{ending}" for name, _ in lowered.params}
    steps = tuple(_step(s, names) for s in lowered.steps)
    sizes = {name: var(new) for name, new in names.items()}
    scratch = tuple(replace(s, shape=tuple(substitute(d, sizes) for d in s.shape)) for s in lowered.scratch)
    params = tuple((names[name], value) for name, value in lowered.params)
    return Lowered(steps, scratch, params, tuple((names.get(n, n), x) for n, x in lowered.limits))


def _step(step: Step, names: Mapping[str, str]) -> Step:
    also = tuple(_step(other, names) for other in step.also)
    return replace(step, program=with_params(step.program, names), also=also)


def with_params(program: Program, names: Mapping[str, str]) -> Program:
    """The program with launch parameters called otherwise, in its grid and in the extents of its tensors too."""

    def rule(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op is TileOp.PARAM:
            return tile.param(names.get(str(node.attrs[0]), str(node.attrs[0])), node.dtype)
        if node.op in (TileOp.LOAD, TileOp.STORE):
            return accessed(node, args, with_extents(access_of(node).tensor, names))
        return None

    tensors = [with_extents(t, names) for t in program.tensors]
    params = [(names.get(name, name), dtype) for name, dtype in program.params]
    return rewrite(program, rule, tensors, params, rule)


def with_extents(tensor: Tensor, names: Mapping[str, str]) -> Tensor:
    """The tensor whose extents go by other names."""
    return replace(tensor, shape=tuple(names.get(x, x) if isinstance(x, str) else x for x in tensor.shape))
