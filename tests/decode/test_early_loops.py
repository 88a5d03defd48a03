"""A window's keys are read before a launch waits for the one that chooses chunks: the head of the chain wrote them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.backends.triton.emit import emit
from sparsec.frontends.preset import preset
from sparsec.lower.decode import chained
from sparsec.lower.lowered import Step
from sparsec.lower.scalars import add, mul
from sparsec.runtime import launch
from sparsec.runtime.compiled import compile
from sparsec.runtime.decode import appends, kernels
from sparsec.runtime.target import Target
from sparsec.tile import build as tile
from sparsec.tile.chain import Chain, early
from sparsec.tile.language import Node, Tensor, TileOp
from sparsec.tile.printer import to_text
from sparsec.tile.regions import regions
from sparsec.tile.rewrite import accesses
from sparsec.tile.schedule import Schedule

DIMS = {"B": 32, "TQ": 1, "TK": 65536, "H": 64, "HKV": 4, "D": 128, "DV": 128, "q_offset": 65535}
JOINED = "attend_out_2_parts_and_attend_out_3_parts"


def steps_of(monkeypatch: pytest.MonkeyPatch, folder: Path, early_launch: bool = True) -> list[Step]:
    """A step of NSA as an H100 runs it, for 32 sequences."""
    found = list[Step]()

    def note(step: Step, target: Target, cache_dir: Path) -> launch.Bind:
        found.append(step)
        return launch.Bind()

    monkeypatch.setenv("SPARSEC_EARLY_LAUNCH", str(int(early_launch)))
    for module in (appends, kernels):
        monkeypatch.setattr(module, "build", note)
    made = compile(preset("nsa", rounding="storage"), "triton:sm_90", folder)
    made.decoder.built(made.decoder.new(32, 65600, deterministic=False), DIMS, "bfloat16", 1)
    return found


def test_the_window_is_read_and_left_before_the_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = steps_of(monkeypatch, tmp_path)
    both = next(s for s in steps if s.program.name == JOINED)
    before, after = emit(both.program, both.schedule, both.chain).split("gdc_wait()")
    stored = [set(re.findall(r"tl\.store\(\s*(\w+)", text)) for text in (before, after)]
    assert stored[0] == {"attend_out_3_part", "attend_out_3_part_lse"}
    assert stored[1] == {"attend_out_2_part", "attend_out_2_part_lse"}
    assert len(re.findall(r"in tl\.range", before)) == len(re.findall(r"in tl\.range", after)) == 1
    assert "select_chosen_best_tile" not in before


def test_the_second_launch_lets_others_start_once_it_has_waited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head, second, *rest = steps_of(monkeypatch, tmp_path)
    for step in (head, second):
        text = emit(step.program, step.schedule, step.chain)
        assert text.index("gdc_wait()") < text.index("gdc_launch_dependents()")
    assert rest and all(s.chain is not None and not s.chain.opens for s in rest)
    assert head.chain == Chain(head=True) and second.chain is not None and second.chain.late


def test_without_early_launches_the_window_stays_with_the_compression(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [s.program.name for s in steps_of(monkeypatch, tmp_path, early_launch=False)]
    assert "attend_out_parts_and_attend_out_3_parts" in names and JOINED not in names


def test_logits_that_the_next_launch_reads_leave_the_cache_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        (s.program.name, access.tensor.name, access.evict)
        for s in steps_of(monkeypatch, tmp_path)
        for _, access in accesses(s.program)
        if access.evict
    }
    assert found == {
        ("attend_out_parts", "select_chosen_raw", "last"),
        ("select_chosen_masses", "select_chosen_raw", "first"),
    }
    lines = [line for s in steps_of(monkeypatch, tmp_path) for line in to_text(s.program).splitlines()]
    assert [sum(f", evict {word}" in line for line in lines) for word in ("last", "first")] == [1, 1]
    steps = {s.program.name: emit(s.program, s.schedule, s.chain) for s in steps_of(monkeypatch, tmp_path)}
    assert steps["attend_out_parts"].count('eviction_policy="evict_last"') == 1
    assert steps["select_chosen_masses"].count('eviction_policy="evict_first"') == 1


def loops_before_the_wait(starts_from_chosen: bool, chain: Chain) -> list[str]:
    """The results, of a loop over x and one over what was chosen, that are there before the wait."""
    x, chosen, near, far = (Tensor(n, "float32", (64,)) for n in ("x", "chosen", "near", "far"))
    with tile.Builder() as b:
        n = b.axis("n", 16)
        for source, out in ((x, near), (chosen, far)):
            start = tile.load(chosen if starts_from_chosen else source, tile.iota(n))

            def visit(at: Node, total: Node, source: Tensor = source, start: Node = start) -> Sequence[Node]:
                return [add(add(total, start), tile.load(source, add(mul(at, 16), tile.iota(n))))]

            (total,) = tile.loop(0, 4, 1, [tile.full(0.0, n)], visit)
            tile.store(out, tile.iota(n), value=total)
        made = b.program("p", [x, chosen, near, far], [], [tile.const(1)])
    ready = early(regions(made), chain)
    return [a.tensor.name for n, a in accesses(made) if n.op is TileOp.STORE and n.serial in ready]


def test_a_loop_waits_for_what_it_takes_from_outside() -> None:
    free = Chain(ready=frozenset({"x", "near", "far"}), free=frozenset({"near", "far"}))
    assert loops_before_the_wait(False, free) == ["near"]
    assert loops_before_the_wait(True, free) == []
    assert loops_before_the_wait(False, replace(free, free=None)) == []
    assert loops_before_the_wait(False, replace(free, free=frozenset({"far"}))) == []


def test_a_tensor_that_a_launch_behind_the_second_reads_is_not_written_early() -> None:
    """What ran before the second launch has ended, what runs behind it may not have."""

    def step(name: str, reads: str, writes: str) -> Step:
        a, b = (Tensor(n, "float32", (16,)) for n in (reads, writes))
        with tile.Builder() as builder:
            n = builder.axis("n", 16)
            zeros = [tile.full(0.0, n)]
            (total,) = tile.loop(0, 1, 1, zeros, lambda at, x: [add(x, tile.load(a, tile.iota(n)))])
            tile.store(b, tile.iota(n), value=total)
            return Step(builder.program(name, [a, b], [], [tile.const(1)]), Schedule())

    steps = [step("second", "kept", "sums"), step("third", "sums", "list"), step("fourth", "kept", "near")]
    chains = [s.chain for s in chained.chained(steps, {"kept"})]
    assert [c is not None and c.late for c in chains] == [True, False, False]
    assert chains[2] is not None and chains[2].free == frozenset({"near"}) and "kept" in chains[2].ready
    steps[2] = step("fourth", "kept", "sums")  # which the third may still read
    chain = chained.chained(steps, {"kept"})[2].chain
    assert chain is not None and chain.free == frozenset()
