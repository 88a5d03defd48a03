"""The quick way of a call that was made before: allocate, and launch what was prepared, with nothing looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sparsec.runtime.arena import arena
from sparsec.runtime.env import Env
from sparsec.runtime.launch import Again
from sparsec.runtime.native.build import native
from sparsec.runtime.native.prepare import Memory, prepared

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.ready import Ready

Run = Callable[[Sequence["Tensor"]], "list[Tensor] | None"]
"""From the tensors of a call in order to its distinct outputs; None, nothing done, where the slow way must be gone."""

Placed = tuple["list[Tensor]", list[Any], "Tensor | None"]
"""The outputs, what the steps pick from, and the memory behind it, to be held until all is launched."""

Learned = Sequence[tuple[str, Sequence[tuple[tuple[str, ...], "Again | None"]]]]
"""Per kernel its name, and per program the names of its tensors and its prepared launch."""

Steps = list[tuple[Callable[[Sequence[Any]], tuple[Any, ...]], Again]]
"""Per program, the choice of its tensors among all, and its launch."""

Named = list[tuple[list[int], "Again"]]
"""Per program, the positions of its tensors among all, and its launch."""


@dataclass(frozen=True, slots=True)
class Quick:
    """A call that was made before.

    Attributes:
        run: the whole of it.
        steps: its launches; to replace one is to replace it in ``run`` too.
        place: the first half of it: from the inputs to the outputs and what the steps pick from.
        native: the whole of it in C++, if it can be had; see ``sparsec.runtime.native``.
    """

    run: Run
    steps: Steps
    place: Callable[[Sequence[Tensor]], Placed]
    native: Any = None


@dataclass(frozen=True, slots=True)
class Device:
    """What a launch asks of a GPU's runtime: which device is current, a device's raw stream, whether hooks are set.

    ``native`` is the C++ module, where there is one, and ``hooks`` where it looks for hooks.
    """

    current: Callable[[], int]
    stream: Callable[[int], int]
    watched: Callable[[], bool]
    native: Any = None
    hooks: Any = None


def quick(ready: Ready, learned: Learned, inputs: Sequence[Tensor]) -> Quick | None:
    """The quick way of a call like this one, if all its programs can be launched again."""
    if (
        not learned
        or any(again is None for _, programs in learned for _, again in programs)
        or any(not x.numel() for x in inputs)
    ):
        return None
    return on_gpu(ready, learned, inputs, _cuda(ready)) if inputs[0].is_cuda else on_cpu(ready, learned, inputs)


def _cuda(ready: Ready) -> Device:
    import torch
    from triton import knobs

    from sparsec.backends.triton.again import current_stream, watched

    current = torch._C._cuda_getDevice  # CUDA is up: inputs are on it
    return Device(
        current, current_stream(), watched(), None if Env().python_launches else native(ready.folder), knobs.runtime
    )


_ODD = 15
"""The bits of an address that a launch prepared for multiples of 16 must not have."""


def _named(learned: Learned, names: Sequence[str]) -> Named:
    places = {name: n for n, name in enumerate(names)}
    found: Named = []
    for kernel, programs in learned:
        for tensors, again in programs:
            assert again is not None
            own = [f"{kernel}/{t}" for t in tensors]
            found.append(([places[o if o in places else t] for o, t in zip(own, tensors, strict=True)], again))
    return found


def _steps(named: Named) -> Steps:
    return [(_picker(positions), again) for positions, again in named]


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """The values at positions, as a tuple."""
    if len(positions) == 1:
        return lambda values: (values[positions[0]],)
    return itemgetter(*positions)


def on_gpu(ready: Ready, learned: Learned, inputs: Sequence[Tensor], gpu: Device) -> Quick:
    """Addresses: of the inputs, of the outputs, and inside one block of memory for everything else."""
    import torch

    offsets, total = arena(ready.plan, ready.dims, ready.fixed)
    named, starts = _named(learned, (*ready.names, *ready.outputs, *offsets)), list(offsets.values())
    device, index, like = inputs[0].device, inputs[0].get_device(), torch.empty_like
    shapes = [_shape(size, getattr(torch, dtype), device) for size, dtype in ready.outputs.values()]
    scratch = _shape((total,), torch.uint8, device)
    steps, current, stream_of, watched = _steps(named), gpu.current, gpu.stream, gpu.watched
    memory = Memory(inputs, shapes, ready.order, scratch if total else None, starts)
    launched = None if gpu.native is None else prepared(gpu.native, named, memory, gpu.hooks)

    def placed(addresses: list[int]) -> Placed:
        outputs = [like(shape) for shape in shapes]
        addresses += [x.data_ptr() for x in outputs]
        if not total:
            return outputs, addresses, None
        block = like(scratch)
        base = block.data_ptr()
        addresses += [base + start for start in starts]
        return outputs, addresses, block

    def stepwise(tensors: Sequence[Tensor]) -> list[Tensor] | None:
        addresses, bits = [x.data_ptr() for x in tensors], 0
        for address in addresses:
            bits |= address
        if bits & _ODD or watched():
            return None
        if current() != index:
            with torch.cuda.device(index):
                return stepwise(tensors)
        outputs, addresses, _block = placed(addresses)
        stream = stream_of(index)
        for pick, again in steps:
            again(pick(addresses), stream)
        return outputs

    whole = stepwise if launched is None else _either(launched.run, stepwise)
    return Quick(whole, steps, lambda tensors: placed([x.data_ptr() for x in tensors]), launched)


def _either(first: Run, second: Run) -> Run:
    """The first, or the second where the first does nothing."""

    def run(tensors: Sequence[Tensor]) -> list[Tensor] | None:
        made = first(tensors)
        return second(tensors) if made is None else made

    return run


def _shape(size: Sequence[int], dtype: Any, device: Any) -> Tensor:
    """What ``empty_like`` makes contiguous tensors from in half the time of ``empty``; holds one element."""
    import torch

    return torch.empty((), dtype=dtype, device=device).expand(size)


def on_cpu(ready: Ready, learned: Learned, inputs: Sequence[Tensor]) -> Quick:
    """Flat views of the inputs and the outputs, and flat tensors for everything else; bfloat16 as its bits."""
    import torch

    own = _unseen(ready)
    steps = _steps(_named(learned, (*ready.names, *ready.outputs, *own)))
    sizes = [(size, getattr(torch, dtype)) for size, dtype in ready.outputs.values()]
    made = [(prod(size), torch.int16 if dtype == "bfloat16" else getattr(torch, dtype)) for size, dtype in own.values()]
    extents = [(1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)),) for x in inputs]
    half, empty, bits, cpu = torch.bfloat16, torch.empty, torch.int16, torch.device("cpu")

    def place(tensors: Sequence[Tensor]) -> Placed:
        outputs = [empty(size, dtype=dtype, device=cpu) for size, dtype in sizes]
        flat = [x.detach().as_strided(n, (1,)) for x, n in zip(tensors, extents, strict=True)]
        flat += [x.view(-1) for x in outputs]
        flat = [x.view(bits) if x.dtype is half else x for x in flat]
        flat += [empty(n, dtype=dtype, device=cpu) for n, dtype in made]
        return outputs, flat, None

    def run(tensors: Sequence[Tensor]) -> list[Tensor] | None:
        outputs, flat, _ = place(tensors)
        for pick, again in steps:
            again(pick(flat), 0)
        return outputs

    return Quick(run, steps, place)


def _unseen(ready: Ready) -> Mapping[str, tuple[Sequence[int], str]]:
    """Shape and dtype of temporaries by name and of scratch by ``kernel/name``."""
    own = {b.name: (b.size(ready.dims), b.dtype) for b in ready.plan.buffers if b.role == "temporary"}
    scratch = {f"{k}/{name}": (shape, d) for k, fixed in ready.fixed.items() for name, shape, d in fixed.scratch}
    return {**own, **scratch}
