"""The arguments of a printed kernel: tensors, parameters, strides, descriptors, in this order."""

from __future__ import annotations

from collections.abc import Iterable

from sparsec.backends.triton.descriptors import BYTES, Descriptor, descriptors
from sparsec.backends.triton.gluon.sums import has_sums, sums
from sparsec.backends.triton.gluon.turns import roles
from sparsec.backends.triton.names import argument
from sparsec.tile.language import Program, Tensor, TileOp, access_of
from sparsec.tile.regions import regions
from sparsec.tile.schedule import Schedule

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32", "int64": "i64"}


def descriptor_arguments(program: Program, schedule: Schedule) -> tuple[Descriptor, ...]:
    """The descriptors that a kernel takes after its strides, in order."""
    if schedule.has_roles:
        return distinct(sums(program).descriptors if has_sums(program) else roles(program).descriptors)
    return distinct(descriptors(program, schedule.descriptors, schedule.whole_rows).values())


def moved_rows(program: Program, schedule: Schedule) -> str | None:
    """The tensor whose rows groups of warps copy in pieces of 16 bytes, from wherever they are."""
    made = roles(program) if schedule.has_roles and not has_sums(program) else None
    return access_of(made.queries).tensor.name if made is not None and made.gathered else None


def distinct(found: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    """Each descriptor once."""
    return tuple(dict.fromkeys(found))


def parameters(program: Program, extra: Iterable[Descriptor]) -> dict[str, str]:
    """The type that the printed signature gives each argument; empty where Triton sees it itself."""
    return {
        **{argument(t.name): "" for t in program.tensors},
        **{name: f"tl.{dtype}" for name, dtype in program.params},
        **{name: "tl.int64" for name in program.stride_params},
        **{d.name: "" for d in distinct(extra)},
    }


def aligned(tensor: Tensor, program: Program) -> bool:
    """Whether a kernel is built for strides that 16 divides: rows of a multiple of 16, read or written as vectors.

    Other strides would make the kernel depend on lengths and batch for nothing.
    """
    last = tensor.shape[-1] if tensor.rank > 1 else None
    if not isinstance(last, int) or last % 16:
        return False
    nodes = (n for found in regions(program).nodes.values() for n in found if n.op in (TileOp.LOAD, TileOp.STORE))
    return any(access_of(n).tensor == tensor and n.args[tensor.rank - 1].axes for n in nodes)


def pinned(program: Program) -> list[str]:
    """The arguments whose values never specialise a kernel: all parameters, and strides that need not."""
    loose = [t for t in program.tensors if not aligned(t, program)]
    strides = [f"{t.name}_s{d}" for t in loose for d in range(t.rank - 1)]
    return [*(name for name, dtype in program.params if dtype != "float32"), *strides]


def signature(program: Program, schedule: Schedule) -> dict[str, str]:
    """The arguments' types for ahead-of-time compilation; ``:16`` marks addresses and strides that 16 divides."""
    fixed = set(pinned(program))
    made = {argument(t.name): f"*{SHORT[t.dtype]}:16" for t in program.tensors}
    made |= {name: SHORT[dtype] for name, dtype in program.params}
    made |= {name: "i64" if name in fixed else "i64:16" for name in program.stride_params}
    for d in descriptor_arguments(program, schedule):
        layout = f",{shared_layout(d)}" if d.swizzle else ""
        made[d.name] = f"tensordesc<{SHORT[d.tensor.dtype]}[{', '.join(map(str, d.block))}]{layout}>"
    return made


def shared_layout(descriptor: Descriptor) -> str:
    """How a box lies in shared memory, as Triton names it in a kernel's signature."""
    size = f"element_bitwidth={8 * BYTES[descriptor.tensor.dtype]}, rank={len(descriptor.block)}"
    return f"NVMMASharedLayout(swizzle_byte_width={descriptor.swizzle}, {size})"
