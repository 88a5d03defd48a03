"""A tile program as Gluon source: a warp that loads boxes ahead, and groups of four warps that compute 64 rows each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sparsec.backends.triton.arguments import parameters, pinned
from sparsec.backends.triton.functions import HELPERS
from sparsec.backends.triton.gluon.gather import USED as GATHER_USED
from sparsec.backends.triton.gluon.gather import Ask, Gather, Who
from sparsec.backends.triton.gluon.groups import USED, Groups
from sparsec.backends.triton.gluon.layouts import Laid
from sparsec.backends.triton.gluon.producer import Producer
from sparsec.backends.triton.gluon.rings import Rings
from sparsec.backends.triton.gluon.shared import BARRIERS, FREED, LATE, TILES, has_zeros, memory, names, sums_memory
from sparsec.backends.triton.gluon.summing import SHARED, SumGroups, SumLoads
from sparsec.backends.triton.gluon.summing import USED as SUMS_USED
from sparsec.backends.triton.gluon.sums import Sums, has_sums, sums
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, GROUP_WARPS, Roles, roles
from sparsec.backends.triton.legal import check
from sparsec.backends.triton.text import wrapped
from sparsec.tile.chain import Chain
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule, ScheduleError

_IMPORTS = """import triton.language as core
from triton.experimental import gluon
from triton.experimental.gluon import language as tl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # 3.9, 3.6
put = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
"""

_COPIES = """from triton.experimental.gluon.language.nvidia.ampere import async_copy

copy = async_copy.async_load if hasattr(async_copy, "async_load") else async_copy.async_copy_global_to_shared
"""

TAKEN = [
    *TILES, *BARRIERS, *LATE, *FREED, *USED, *GATHER_USED, *SUMS_USED, "async_copy", "copy",
    "core", "gluon", "hopper", "mbarrier", "tma", "fetch", "put", "GROUP", "STAGES",
]  # fmt: skip
PRODUCER_REGISTERS = 24
MOST_REGISTERS = 232
"""Of a thread that computes, for any group but the first, which gets what is left."""

WALKING = 240
"""The same where groups walk from tile to tile, or keep sums of gradients; with fewer they spill (Triton 3.6)."""


def emit(program: Program, schedule: Schedule, chain: Chain | None = None) -> str:
    """Gluon source of a program: a function for each role, and the kernel, which begins them.

    It takes the arguments of the Triton printing, with descriptors of its own, and works unchanged on Triton 3.6 and
    3.9. Raises ScheduleError where warps cannot have roles.
    """
    check(program)
    if has_sums(program):
        return _emit_sums(program, schedule, chain)
    made = roles(program)
    if schedule.rows & (schedule.rows - 1):
        made = replace(made, some=schedule.rows)
    made = replace(made, rings=_rings(made, schedule))
    if chain is not None:
        raise ScheduleError(f"{program.name} begins while another kernel ends, without roles; use producer=False")
    if schedule.warps != GROUP_WARPS * made.groups:
        each = f"{GROUP_WARPS} for each {GROUP_ROWS}"
        need = f"{made.some or made.rows.size} rows need {GROUP_WARPS * made.groups} warps that compute, {each}"
        raise ScheduleError(f"{program.name}: {need}; not {schedule.warps}")
    if schedule.stages < 2:
        raise ScheduleError(f"{program.name}: values wait while those of the turn before are read: 2 stages at least")
    arguments = _arguments(made)
    copies, gather, ask = _gathering(made, schedule, arguments)
    if schedule.peel and len(made.turns) > 1:
        raise ScheduleError(f"{program.name}: any of {len(made.turns)} loops may hold the first turn; use peel=False")
    if made.ahead and not schedule.peel:
        raise ScheduleError(f"{program.name}: a walk's queries are freed behind a first turn of its own; use peel=True")
    groups = Groups(made, TAKEN, ask, schedule)
    bodies, shared = (groups.body(), Producer(made, TAKEN).body()), memory(made, schedule.peel)
    parts = _parts(made, schedule, bodies, names(made), shared)
    return "\n".join([_IMPORTS, *copies, *_helpers(groups), *gather, *parts, ""])


def _emit_sums(program: Program, schedule: Schedule, chain: Chain | None) -> str:
    """The same for gradients, whose groups keep sums of rows through all turns."""
    made = sums(program)
    made = replace(made, rings=Rings(schedule.stages, schedule.stages))
    if chain is not None or schedule.stages < 2 or schedule.warps != GROUP_WARPS * made.groups:
        need = f"{GROUP_WARPS * made.groups} warps that compute, 2 stages at least, and launches apart"
        raise ScheduleError(f"{program.name}: {made.rows.size} rows with roles need {need}; use producer=False")
    groups = SumGroups(made, TAKEN)
    bodies = groups.body(), SumLoads(made, TAKEN).body()
    parts = _parts(made, schedule, bodies, SHARED, sums_memory(made))
    return "\n".join([_IMPORTS, *_helpers(groups), *parts, ""])


def _arguments(made: Roles | Sums) -> dict[str, str]:
    """The kernel's arguments. Raises ScheduleError where one has a name that the source needs."""
    arguments = parameters(made.program, made.descriptors)
    if clash := [name for name in arguments if name in TAKEN]:
        name = made.program.name
        raise ScheduleError(f"{name} has an argument named {clash[0]}, which its Gluon source uses; rename it")
    return arguments


def _helpers(groups: Laid) -> list[str]:
    return [HELPERS[name].replace("@triton.jit", "@gluon.jit") for name in HELPERS if name in groups.helpers]


def _parts(
    made: Roles | Sums, schedule: Schedule, bodies: tuple[list[str], list[str]], own: Sequence[str], shared: list[str]
) -> list[str]:
    """A function for each role, which take what their bodies name and the kernel's ``own`` tiles, and the kernel."""
    arguments, name = _arguments(made), made.program.name
    used = {role: [*_used(lines, arguments), *own] for role, lines in zip(("rows", "loads"), bodies, strict=True)}
    rows = _function(f"{name}_rows", ["GROUP: tl.constexpr", *used["rows"]], made, bodies[0])
    loads = _function(f"{name}_loads", used["loads"], made, bodies[1])
    return [*rows, *loads, *_kernel(made, schedule, arguments, used, shared)]


def _rings(made: Roles, schedule: Schedule) -> Rings:
    """Slots; where a walk's first turns need no zeros, keys and values are freed apart.

    Values of gathered queries then have a slot more, since they wait longest (in place of those zeros).
    """
    apart = made.walk is not None and not has_zeros(made, schedule.peel)
    return Rings(schedule.stages, schedule.stages + (apart and made.gathered), apart)


def _gathering(made: Roles, schedule: Schedule, arguments: dict[str, str]) -> tuple[list[str], list[str], Ask]:
    """What is imported for copies of queries, the functions that make them, and how groups ask for them."""
    if not made.gathered:
        return [], [], Ask([], [], [])
    name, early = made.program.name, schedule.late and made.rings.apart and made.last.certain > 1
    known = Who(made, TAKEN) if early else None
    names, functions = list[str](), list[str]()
    given = list[str]()
    if known is not None and known.loads:
        lines = known.body()
        given = _used(lines, arguments)
        names = known.returned
        functions = _function(f"{name}_who", ["GROUP: tl.constexpr", "number", *given], made, lines)
    lines = Gather(made, TAKEN, known.loads if known is not None else ()).body()
    used = _used(lines, arguments)
    first = ["GROUP: tl.constexpr", *(names or ["number"]), "target"]
    return [_COPIES], [*functions, *_function(f"{name}_queries", [*first, *used], made, lines)], Ask(names, given, used)


def _used(lines: list[str], arguments: dict[str, str]) -> list[str]:
    words = set(re.findall(r"\w+", "\n".join(lines)))
    return [name for name in arguments if name in words]


def _function(name: str, arguments: list[str], made: Roles | Sums, lines: list[str]) -> list[str]:
    body = [text for line in lines for text in wrapped(line)]
    slots = [f"    STAGES: tl.constexpr = {made.rings.stages}"]
    slots += [f"    VALUES: tl.constexpr = {made.rings.values}"] if made.rings.apart else []
    return ["", "@gluon.jit", f"def {name}(", *(f"    {a}," for a in arguments), "):", *slots, *body, ""]


def _kernel(
    made: Roles | Sums, schedule: Schedule, arguments: dict[str, str], used: dict[str, list[str]], shared: list[str]
) -> list[str]:
    """The kernel: shared memory, barriers, and who does what."""
    program = made.program
    most = MOST_REGISTERS if isinstance(made, Roles) and made.walk is None else WALKING
    fixed = ", ".join(f'"{name}"' for name in pinned(program))
    shapes = ", ".join(f"{t.name} {t.dtype}[{', '.join(map(str, t.shape))}]" for t in program.tensors)
    warps = [GROUP_WARPS] * (made.groups - 1) + [1]
    return [
        "",
        f"@gluon.jit(do_not_specialize=[{fixed}])",
        f"def {program.name}(",
        *(f"    {name}: {kind}," if kind else f"    {name}," for name, kind in arguments.items()),
        "):",
        f'    """{shapes}."""',
        *shared,
        f"    compute = ({', '.join(used['rows'])})",
        f"    load = ({', '.join(used['loads'])})",
        "    tl.warp_specialize(",
        "        [",
        *(f"            ({program.name}_rows, ({k},) + compute)," for k in range(made.groups)),
        f"            ({program.name}_loads, load),",
        "        ],",
        f"        {warps},",
        f"        {_registers(made.groups, schedule, most)},",
        "    )",
    ]


def _registers(groups: int, schedule: Schedule, most: int) -> list[int]:
    """Registers a thread of every group but the first, and of the loading warp, whose group gives its own away."""
    computing, loading = GROUP_WARPS * groups, 4
    left = schedule.registers * (computing + loading) - PRODUCER_REGISTERS * loading
    share = left // computing // 8 * 8 if schedule.registers else most
    return [min(share, most)] * (groups - 1) + [PRODUCER_REGISTERS]
