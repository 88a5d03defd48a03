"""Runs printed Gluon without a GPU: a thread per role, and shared memory that shows what is misread.

What is asynchronous happens as late as its waits allow: a copy lands when somebody waits for its barrier, and its slot
holds NaN until then; a product is computed when it is waited for. So a slot that is read too early, or freed too
early, gives NaN, and a barrier that nobody completes is an error after a while instead of a wait for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsec.backends.triton.arguments import descriptor_arguments
from sparsec.testing.gluon.memory import Barrier, Box, Pointer, Product, Shared, Unfenced, load, store
from sparsec.tile.language import Program
from sparsec.tile.scalars import grid_of
from sparsec.tile.schedule import Schedule

LATE = 0.0
"""Seconds that a product takes, in which other roles go on."""


class Machine:
    """What printed Gluon names, for one program of the grid."""

    def __init__(self, place: Sequence[int], grid: Sequence[int]) -> None:
        self.place, self.grid = place, grid
        self.bell = threading.Condition()
        self.local = threading.local()
        self.errors: list[BaseException] = []
        self.unfenced = Unfenced()

    def names(self) -> dict[str, Any]:
        """The modules that the source imports, and its name for a copy."""
        barriers = SimpleNamespace(init=self.init, expect=self.expect, arrive=self.arrive, wait=self.wait)
        barriers.MBarrierLayout = lambda: "barriers"
        products = SimpleNamespace(warpgroup_mma=self.multiply, warpgroup_mma_wait=self.finish)
        products.fence_async_shared = self.unfenced.fence
        core = SimpleNamespace(PropagateNan=SimpleNamespace(ALL=None))
        return {
            "tl": self.language(),
            "mbarrier": barriers,
            "hopper": products,
            "core": core,
            "fetch": self.fetch,
            "put": self.put,
            "tma": SimpleNamespace(store_wait=self.landed),
            "copy": self.copy,
            "async_copy": SimpleNamespace(commit_group=lambda: None, wait_group=self.copied),
        }

    def language(self) -> Any:
        """``triton.experimental.gluon.language``, of which only what is printed."""
        found = SimpleNamespace(constexpr=int, int32=torch.int32, int64=torch.int64, float32=torch.float32)
        found.bfloat16, found.float16, found.int1 = torch.bfloat16, torch.float16, torch.bool
        for layout in (
            "NVMMADistributedLayout",
            "DotOperandLayout",
            "SliceLayout",
            "NVMMASharedLayout",
            "BlockedLayout",
            "SwizzledSharedLayout",
        ):
            setattr(found, layout, lambda *a, **k: None)
        found.program_id = lambda d: torch.tensor(self.place[d])
        found.num_programs = lambda d: torch.tensor(self.grid[d])
        found.arange = lambda a, b, layout: torch.arange(a, b)
        found.full = lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype)
        found.convert_layout = lambda x, layout: x
        found.cast = lambda x, dtype, bitcast: x.view(dtype)
        found.maximum = lambda a, b, propagate_nan=None: torch.maximum(*_both(a, b))
        found.minimum = lambda a, b, propagate_nan=None: torch.minimum(*_both(a, b))
        found.where = lambda c, a, b: torch.where(torch.as_tensor(c), *_both(a, b))
        found.exp2, found.log2, found.exp, found.abs = torch.exp2, torch.log2, torch.exp, torch.abs
        found.max, found.sum = lambda x, axis: x.amax(axis), lambda x, axis: x.sum(axis)
        found.load, found.store, found.warp_specialize = load, store, self.specialize
        found.allocate_shared_memory = self.allocate
        return found

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: object) -> Shared:
        """Barriers, or tiles of NaN."""
        if layout == "barriers":
            made = [Barrier(self.bell, broken=self.errors) for _ in range(shape[0])]
            return Shared(made if len(shape) > 1 else made[0])
        return Shared(torch.full(shape, float("nan"), dtype=dtype), self.unfenced)

    def init(self, barrier: Shared, count: int) -> None:
        """How many arrive in each phase."""
        barrier.data.count = barrier.data.left = count

    def expect(self, barrier: Shared, size: int) -> None:
        """Bytes will land; this arrives, too."""
        barrier.data.arrive(1, size)

    def arrive(self, barrier: Shared, count: int) -> None:
        """Arrive at a barrier."""
        barrier.data.arrive(count)

    def wait(self, barrier: Shared, parity: int) -> None:
        """Wait for the end of a phase."""
        barrier.data.wait(parity)

    def fetch(self, box: Box, starts: Sequence[int], barrier: Shared, slot: Shared) -> None:
        """A copy that lands when its barrier is waited for."""
        with self.bell:
            slot.data.fill_(float("nan"))
            barrier.data.copies.append(lambda: box.copy(starts, slot.data))
            self.bell.notify_all()

    def put(self, box: Box, starts: Sequence[int], slot: Shared) -> None:
        """A copy back that ends when it is waited for."""
        self.unfenced.read(slot.data)
        self.local.__dict__.setdefault("puts", []).append(lambda: box.put(starts, slot.data))

    def landed(self, others: int) -> None:
        """End all copies back but the last ``others``."""
        under_way = self.local.__dict__.setdefault("puts", [])
        while len(under_way) > others:
            under_way.pop(0)()

    def copy(self, to: Shared, pointer: Pointer, mask: Tensor) -> None:
        """A copy of rows, piece by piece, that this role alone waits for; until then there is nothing."""
        to.data.fill_(float("nan"))
        self.local.__dict__.setdefault("copies", []).append(lambda: to.store(load(pointer, mask)))

    def copied(self, others: int) -> None:
        """End all copies of rows."""
        assert others == 0, "no role has more than one under way"
        while self.local.copies:
            self.local.copies.pop(0)()

    def multiply(self, a: Any, b: Shared, acc: Tensor, use_acc: bool = True, is_async: bool = False) -> Product:
        """A product that is computed when it is waited for."""
        assert is_async
        for tile in (x for x in (a, b) if isinstance(x, Shared)):
            tile.unfenced.read(tile.data)

        def compute() -> Tensor:
            left: Tensor = a.data if isinstance(a, Shared) else a
            with self.bell:
                found: Tensor = left.float() @ b.data.float()
            return found + acc if use_acc else found

        self.local.__dict__.setdefault("pending", []).append(made := Product(compute))
        return made

    def finish(self, others: int, deps: Sequence[Any]) -> Any:
        """Compute all products but the last ``others``; what was waited for."""
        pending = self.local.pending
        if LATE:
            time.sleep(LATE)
        while len(pending) > others:
            product = pending.pop(0)
            product.result = product.compute()
        made = [d.result if isinstance(d, Product) else d for d in deps]
        assert all(m is not None for m in made), "a product is read before it is waited for"
        return made[0] if len(made) == 1 else tuple(made)

    def specialize(
        self, roles: Sequence[tuple[Callable[..., None], tuple[Any, ...]]], warps: Any, registers: Any
    ) -> None:
        """Run every role in a thread of its own; the first error of any."""
        assert len(warps) == len(registers) == len(roles) - 1

        def run(role: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            try:
                role(*arguments)
            except BaseException as error:
                with self.bell:
                    self.errors.append(error)
                    self.bell.notify_all()

        threads = [threading.Thread(target=run, args=role, daemon=True) for role in roles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


def run(
    source: str, program: Program, schedule: Schedule, tensors: Mapping[str, Tensor], params: Mapping[str, int]
) -> None:
    """Run a printed kernel over its grid, one program after another; results are written to ``tensors``."""
    grid = [int(n) for n in grid_of(program, params)]
    strides = [torch.tensor(tensors[t.name].stride(d)) for t in program.tensors for d in range(t.rank - 1)]
    boxes = [Box(d, tensors[d.tensor.name]) for d in descriptor_arguments(program, schedule)]
    memories = [Pointer(tensors[t.name]) for t in program.tensors]
    arguments = [*memories, *(torch.tensor(params[n]) for n, _ in program.params), *strides, *boxes]
    code = compile(source[source.index("@gluon.jit") :], "<printed Gluon>", "exec")
    jit = lambda f=None, **_: f if f is not None else (lambda g: g)  # noqa: E731
    for place in torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist():
        names = {**Machine(place, grid).names(), "gluon": SimpleNamespace(jit=jit)}
        exec(code, names)
        names[program.name](*arguments)


def _both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Operands as tensors; a number takes the dtype of the tensor beside it."""
    like = next((x.dtype for x in (a, b) if isinstance(x, Tensor)), None)
    one, two = (x if isinstance(x, Tensor) else torch.tensor(x, dtype=like) for x in (a, b))
    return one, two
