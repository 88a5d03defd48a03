"""Mixtures: one kernel for the weights of all candidates, and one for all their gradients."""

from __future__ import annotations

from sparsec.ir.build_state import TIE
from sparsec.ir.node import Node
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad
from sparsec.plan.states.scan import LENGTH


def mixture(planner: Planner, node: Node) -> str:
    """The buffer of the weights, planned on first use."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    honours(planner, node, "scale", "top", "first")
    q, *found = (planner.input(source) for source in node.positional)
    if any(planner.buffers[z].dtype != "float32" for z in found):
        raise planner.refuse(node, "candidates are masses of keys, in fp32")
    given = {name: _given(planner, node, source) for name, source in node.operands.items()}
    scale = node.expr("scale") if not isinstance(node["scale"], float | int) else None
    out = planner.temporary(node, "tensor", node.shape, "float32")
    spec = Mixture(
        name=f"mixture_{out}",
        q=q,
        z=tuple(found),
        out=out,
        heads=planner.sizes.value(node.shape[2]),
        key_heads=planner.sizes.value(node.src[1].shape[2]),
        dim=planner.sizes.value(node.src[0].shape[3]),
        scale=planner.sizes.number(scale) if scale is not None else float(node["scale"]),  # type: ignore[arg-type]
        dtype=planner.buffers[q].dtype,
        top=node.integer("top") if node["top"] is not None else None,
        first=node.integer("first"),
        tie=TIE,
        bias=given.get("bias"),
        gain=given.get("gain"),
    )
    planner.specs[node] = spec
    length = node.shape[1]
    planner.add(spec, _read(spec), [out], [node], {LENGTH: length, "TQ": length, "TK": planner.token_length})
    return out


def mixture_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of all gradients of a mixture that are asked for."""
    node, cotangent = vjp.positional
    mixture(planner, node)
    forward = planner.specs[node]
    assert isinstance(forward, Mixture)
    grad = source(cotangent, "float32")
    wanted = {v.word("of"): v for v in planner.vjps if v.src[0] is node and v.positional[1] is cotangent}
    made = {of: _made(planner, v) for of, v in wanted.items()}  # those of masses as kernels of scans read them
    spec = MixtureGrad(
        name=f"grad_{next(iter(made.values()))[0]}",
        forward=forward,
        grad=grad,
        grad_q=made.get("q"),
        grad_z=tuple(made.get(f"z{n}") for n in range(len(forward.z))),
        grad_bias=made.get("bias"),
        grad_gain=made.get("gain"),
    )
    outs = [name for name, _ in made.values()]
    planner.follow(node, spec, [*_read(forward), grad], outs, wanted.values())


def _given(planner: Planner, node: Node, source: Node) -> tuple[str, str]:
    sizes = [planner.sizes.value(dim) for dim in source.shape[2:]]
    if sizes != [planner.sizes.value(dim) for dim in node.shape[2:]]:
        raise planner.refuse(node, "a bias and a gain have a number per token, head and candidate; expand them")
    name = planner.input(source)
    return name, planner.buffers[name].dtype


def _read(spec: Mixture) -> list[str]:
    return [spec.q, *spec.z, *(x[0] for x in (spec.bias, spec.gain) if x is not None)]


def _made(planner: Planner, vjp: Node) -> tuple[str, str]:
    masses = vjp.word("of").startswith("z")
    dtype = "float32" if masses else planner.precision(vjp, planner.sizes.dtype_of(vjp))
    return planner.temporary(vjp, "tensor", vjp.shape, dtype), dtype
