"""The launcher of an exported file: checks, buffers and launches as straight-line code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sparsec.ir.op import Op
from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.plan import Buffer, Kernel
from sparsec.runtime.exported.module import Exported, named
from sparsec.runtime.reading import scalar_text
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import substitute
from sparsec.tile.language import Program


def run_text(file: Exported) -> str:
    """The function ``run``."""
    returned = [named(name) for name in file.plan.outputs]
    result = "Tensor" if len(returned) == 1 else f"tuple[{', '.join(['Tensor'] * len(returned))}]"
    signature = ", ".join(f"{named(name)}: Tensor" for name in file.variant.inputs)
    place = f"the first query stands at q_offset, by default {default_offset(file)}"
    about = [f'"""{file.variant.name} on inputs by name; {place}.', "", 'For inference only: no gradients."""']
    lines = [f"def run({signature}, q_offset: int | None = None) -> {result}:", *(f"    {x}".rstrip() for x in about)]
    return "\n".join([*lines, *(f"    {line}" for line in _body(file)), f"    return {', '.join(returned)}"])


def _body(file: Exported) -> Iterator[str]:
    yield from no_gradients(file)
    yield from _lengths(file)
    yield from expected(file, lambda name: file.shape(file.variant.inputs[name].shape))
    yield from checked_lists(file, lambda length: length)
    yield from launched(file)


def expected(file: Exported, shape: Callable[[str], str]) -> Iterator[str]:
    """Inputs are held to their dtypes and to their shapes, which are given by name as Python tuples."""
    for name, spec in file.variant.inputs.items():
        dtype = file.dtype if spec.dtype == "float" else spec.dtype
        yield f'expect("{name}", {named(name)}, {shape(name)}, torch.{dtype}, DEVICE)'


def launched(file: Exported) -> Iterator[str]:
    """The buffers and launches of a plan."""
    yield f"device = {named(next(iter(file.variant.inputs)))}.device"
    for buffer in file.plan.buffers:
        if buffer.role != "input":
            yield empty_text(file, buffer)
    for kernel, lowered in file.kernels:
        yield f"# {kernel.name} computes {', '.join(kernel.covers)}"
        yield from launch_texts(file, kernel, lowered)


def no_gradients(file: Exported) -> Iterator[str]:
    """Inputs that want gradients are refused: the result would not be connected to them."""
    floats = [named(name) for name, spec in file.variant.inputs.items() if spec.dtype != "int32"]
    if floats:
        yield f"if torch.is_grad_enabled() and any(x.requires_grad for x in ({', '.join(floats)},)):"
        yield '    raise ValueError("this file computes no gradients: use torch.no_grad() or detach")'


def _lengths(file: Exported) -> Iterator[str]:
    """Lengths and batch, each from the first input that has it as a dim of its own."""
    found: dict[str, str] = {}
    for name, spec in file.variant.inputs.items():
        for position, dim in enumerate(spec.shape):
            if dim.head == "var" and dim.value in file.free:
                found.setdefault(str(dim.value), f"{named(name)}.shape[{position}]")
    yield f"{', '.join(found)} = {', '.join(found.values())}"
    yield f"q_offset = {default_offset(file)} if q_offset is None else q_offset"


def default_offset(file: Exported) -> str:
    """The position of the first query where none is given, as Python."""
    known = file.compiled.lengths
    if known.keys is None or known.queries is None:
        return "0"
    return file.text(known.keys - known.queries)


def checked_lists(file: Exported, length: Callable[[Expr], Expr]) -> Iterator[str]:
    """Given lists are checked before a kernel could read out of bounds.

    Args:
        length: what the number of keys is where the file runs.
    """
    for node in file.variant.nodes:
        for selection in node.positional[2:] if node.op is Op.ATTEND else ():
            if selection.op is Op.GIVEN and selection.src[0].op is Op.INPUT:
                name, size = str(selection.src[0]["name"]), selection.integer("size")
                units = file.text((length(node.src[1].shape[1]) + (size - 1)) // size)
                counts = selection.operands.get("counts")
                beside = f", {named(str(counts['name']))}" if counts is not None and counts.op is Op.INPUT else ""
                yield f'expect_indices("{name}", {named(name)}, {units}{beside})'


def empty_text(file: Exported, buffer: Buffer) -> str:
    """The allocation of a buffer."""
    how = f"dtype=torch.{buffer.dtype}, device=device"
    return f"{named(buffer.name)} = torch.empty({file.shape(buffer.shape)}, {how})"


def launch_texts(file: Exported, kernel: Kernel, lowered: Lowered) -> Iterator[str]:
    """The scratch buffers and launches of a kernel."""
    own = dict(kernel.params)
    values = own | {name: substitute(value, own) for name, value in lowered.params}
    for scratch in lowered.scratch:
        shape = tuple(substitute(d, values) for d in scratch.shape)
        yield empty_text(file, Buffer(scratch.name, shape, scratch.dtype, "temporary"))
    params = {name: file.text(value) for name, value in values.items()}
    for step in lowered.steps:
        yield from _launch(file, step, params)


def _launch(file: Exported, step: Step, params: Mapping[str, str]) -> Iterator[str]:
    program, schedule = step.program, step.schedule
    tensors = ", ".join(named(t.name) for t in program.tensors)
    values = ", ".join(params[name] for name, _ in program.params)
    if file.target.backend == "tvm":
        yield f"launch({program.name.upper()}, [{tensors}], [{values}])"
        return
    from sparsec.backends.triton.address import stride_limits

    limit = min(stride_limits(program).values(), default=2**62)
    options = f"num_warps={schedule.warps}, num_stages={schedule.stages}"
    options += f", maxnreg={schedule.registers}" if schedule.registers else ""
    yield f"grid = {_grid(program, params)}"
    yield f"launch({program.name}, grid, [{tensors}], [{values}], {limit}, {options})"


def _grid(program: Program, params: Mapping[str, str]) -> str:
    """The grid as a tuple of Python expressions."""
    extents = [scalar_text(g, params) for g in program.grid]
    return f"({', '.join(extents)},)" if len(extents) == 1 else f"({', '.join(extents)})"
