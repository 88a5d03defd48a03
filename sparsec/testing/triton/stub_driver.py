"""A CUDA driver that is not there: launches of the C++ module run the tile interpreter on the CPU's memory."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsec.backends.triton.packed import Packed
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.quick import Device, Learned, Quick, on_gpu
from sparsec.runtime.ready import Ready
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Program

LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)  # fmt: skip


def tensor_at(address: int, like: Tensor) -> Tensor:
    """A tensor on memory that is known by its address."""
    count = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
    memory = (ctypes.c_char * (count * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())


class OnAddresses:
    """One program's launch on addresses: the tile interpreter on what lies there."""

    def __init__(self, program: Program, likes: list[Tensor], params: dict[str, int]) -> None:
        self.program, self.likes, self.params = program, likes, params

    def __call__(self, pointers: Sequence[int], stream: int) -> None:
        named = zip(self.program.tensors, pointers, self.likes, strict=True)
        interpret(self.program, {t.name: tensor_at(p, like) for t, p, like in named}, self.params)


class Interpreted(OnAddresses):
    """The same, and as the C++ module takes it."""

    def __init__(self, stub: Stub, program: Program, likes: list[Tensor], params: dict[str, int]) -> None:
        super().__init__(program, likes, params)
        self.handle = stub.add(self)

    def packed(self) -> Packed:
        """A number before the addresses, and one after them, so that places matter."""
        count = len(self.likes)
        places = (0, *(8 + 8 * n for n in range(count)), 8 + 8 * count)
        block = struct.pack("i", 7) + bytes(4 + 8 * count) + struct.pack("q", 11)
        pointers = tuple((place, n) for n, place in enumerate(places[1:-1]))
        return Packed(self.handle, (5, 3, 2), 128, 64, block, places, (4, *[8] * count, 8), pointers, ())


class Stub:
    """What CUDA's launch function is replaced by while it is entered: launches are counted, and run.

    Attributes:
        answer: what a launch answers without doing anything, if not 0.
        instead: what is done instead, with the address of the first argument.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.launches, self.answer = module, 0, 0
        self.instead: Callable[[int], int] | None = None
        self._programs: list[Interpreted] = []
        self._launch = LAUNCH(self._run)

    def __enter__(self) -> Stub:
        self.module.launch_with(ctypes.cast(self._launch, ctypes.c_void_p).value)
        return self

    def __exit__(self, *error: object) -> None:
        self.module.launch_with(0)

    def add(self, program: Interpreted) -> int:
        """The handle of a program."""
        self._programs.append(program)
        return len(self._programs)

    def forget(self) -> None:
        """Hold no program any more; their handles are used again."""
        self._programs.clear()

    def _run(self, handle: int, *rest: Any) -> int:
        self.launches += 1
        if self.answer or self.instead:
            return self.answer if self.instead is None else self.instead(rest[8][0])
        shape, stream, arguments = rest[:7], rest[7], rest[8]
        program = self._programs[handle - 1]
        count = len(program.likes)
        first = ctypes.c_int.from_address(arguments[0]).value
        pointers = [ctypes.c_uint64.from_address(arguments[1 + n]).value for n in range(count)]
        last = ctypes.c_int64.from_address(arguments[1 + count]).value
        if (shape, stream, first, last) != ((5, 3, 2, 128, 1, 1, 64), None, 7, 11):
            return 1
        program(pointers, 0)
        return 0


def learned(
    compiled: Compiled,
    ready: Ready,
    given: dict[str, Tensor],
    launch: Callable[[Program, list[Tensor], dict[str, int]], OnAddresses] = OnAddresses,
) -> Learned:
    """Launches that take addresses, as a GPU's do, and run the tile interpreter on what lies there."""
    buffers, found = ready.run(given), []
    for kernel in ready.kernels:
        fixed, programs = ready.fixed[kernel.kernel.name], []
        scratch = {n: torch.empty(shape, dtype=getattr(torch, d)) for n, shape, d in fixed.scratch}
        for step in kernel.lowered.steps:
            names = tuple(t.name for t in step.program.tensors)
            likes = [{**buffers, **scratch}[n] for n in names]
            programs.append((names, launch(step.program, likes, fixed.params)))
        found.append((kernel.kernel.name, programs))
    return found


def hooks(enter: Callable[[object], None] | None = None) -> SimpleNamespace:
    """Where Triton keeps a profiler's hooks."""
    return SimpleNamespace(
        launch_enter_hook=SimpleNamespace(calls=[] if enter is None else [enter]), launch_exit_hook=None
    )


def quick_of(compiled: Compiled, ready: Ready, tensors: Sequence[Tensor], stub: Stub, told: Any = None) -> Quick:
    """The quick way of a call with launches of the stub, in C++."""
    gpu = Device(lambda: -1, lambda index: 0, lambda: False, stub.module, told or hooks())
    named = dict(zip(ready.names, tensors, strict=True))
    return on_gpu(ready, learned(compiled, ready, named, partial(Interpreted, stub)), tensors, gpu)
