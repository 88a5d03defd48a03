"""The search with a toy kernel: what is tried, kept, refused and resumed, without a compiler or a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sparsec.autotune.progress import Progress
from sparsec.autotune.report import summary
from sparsec.autotune.search import Budget, Found, Search
from sparsec.autotune.space import Space
from sparsec.autotune.study import Study
from sparsec.autotune.trial import Built, Comparison, Rejection, Trial, Unfit
from sparsec.tile.schedule import Schedule

CHOICES = {"rows": (16, 32, 64, 128), "block": (16, 32, 64), "warps": (1, 2, 4, 8), "stages": (1, 2, 3)}
SPACE = Space(Schedule(), CHOICES)


def seconds(schedule: Schedule) -> float:
    """The toy kernel's time: the best is rows 128, block 32, 8 warps, 2 stages."""
    off = [schedule.rows != 128, schedule.block != 32, schedule.warps != 8, schedule.stages != 2]
    return 1.0 + sum(off) + 64 / schedule.rows / 100


class Toy:
    """A kernel whose time is a formula; some configurations are refused at each stage."""

    name = "toy"

    def __init__(self, wrong: Callable[[Schedule], bool] = lambda s: False, noise: float = 0.0) -> None:
        self.wrong, self.noise = wrong, noise
        self.admitted: list[Schedule] = []
        self.kept: list[tuple[Schedule, Comparison]] = []

    def refuse(self, schedule: Schedule) -> Rejection | None:
        if schedule.rows * schedule.block * schedule.stages > 128 * 64 * 2:
            return Rejection("shared memory", "too large")
        return None

    def admit(self, schedule: Schedule) -> Rejection | None:
        self.admitted.append(schedule)
        return Rejection("wrong result", "row 3 is off") if self.wrong(schedule) else None

    def compare(self, challenger: Schedule, incumbent: Schedule, final: bool) -> Comparison:
        own, other = seconds(challenger), seconds(incumbent)
        ratio = own / other
        return Comparison(ratio, ratio - self.noise, ratio + self.noise, own, other, 7)

    def keep(self, schedule: Schedule, found: Comparison, trials: int) -> None:
        self.kept.append((schedule, found))


class Compiler:
    """Compiles at once; refuses one warp with three stages."""

    def __init__(self, batch: int = 4, interrupt_after: int | None = None) -> None:
        self.batch, self.jobs = batch, dict[int, Schedule]()
        self.compiled: list[Schedule] = []
        self.left = interrupt_after

    def submit(self, number: int, schedule: Schedule) -> None:
        self.jobs[number] = schedule

    def finished(self, deadline: float) -> Sequence[tuple[int, Built | Rejection]]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        jobs, self.jobs = self.jobs, {}
        self.compiled += jobs.values()
        return [(number, self._build(s)) for number, s in jobs.items()]

    def _build(self, s: Schedule) -> Built | Rejection:
        return Rejection("compile", "no") if (s.warps, s.stages) == (1, 3) else Built(0.1, 100, 0, 1000)

    def cancel(self) -> None:
        self.jobs = {}


def search(
    path: Path | None, toy: Toy, trials: int, compiler: Compiler | None = None,
    show: Callable[[Progress], None] | None = None,
) -> Found:  # fmt: skip
    return Search(toy, Study(path, "toy", SPACE), compiler or Compiler(), Budget(trials), show).run()


def test_the_best_configuration_is_found_and_kept() -> None:
    toy = Toy()
    found = search(None, toy, SPACE.size)
    assert found.schedule == Schedule(rows=128, block=32, warps=8, stages=2)
    schedule, final = toy.kept[-1]
    assert schedule == found.schedule and final == found.final
    assert final is not None and final.ratio == pytest.approx(seconds(schedule) / seconds(Schedule()))


def test_every_configuration_is_tried_once_and_then_it_ends() -> None:
    found = search(None, Toy(), 10 * SPACE.size)
    tried = [t.schedule for t in found.trials]
    assert len(tried) == len(set(tried)) == SPACE.size


def test_the_default_comes_first() -> None:
    toy = Toy()
    found = search(None, toy, 12)
    assert found.trials[0].schedule == Schedule() and found.trials[0].ratio == 1.0 and found.trials[0].won
    assert toy.admitted[0] == Schedule()


def test_what_is_known_as_good_comes_next() -> None:
    known = (Schedule(rows=128, block=16), Schedule(rows=16, block=16))
    space = Space(Schedule(), CHOICES, known)

    def tried(trials: int) -> list[Schedule]:
        found = Search(Toy(), Study(None, "toy", space), Compiler(), Budget(trials), None).run()
        return [t.schedule for t in found.trials]

    assert tried(1) == [Schedule()] and tried(2) == [Schedule(), known[0]]
    assert tried(9)[:3] == [Schedule(), *known] and len(set(tried(9))) == 9


def test_ratios_are_to_the_default_though_incumbents_change() -> None:
    for t in search(None, Toy(), 60).trials:
        if t.state == "timed":
            assert t.ratio == pytest.approx(seconds(t.schedule) / seconds(Schedule()))


def test_rejections_are_counted_by_reason() -> None:
    found = search(None, Toy(wrong=lambda s: s.warps == 2), SPACE.size)
    large = sum(s.rows * s.block * s.stages > 128 * 64 * 2 for s in map(SPACE.schedule, SPACE.configurations()))
    whys = {why: sum(t.why == why for t in found.trials) for why in ("shared memory", "compile", "wrong result")}
    assert whys["shared memory"] == large
    assert summary(found.trials).startswith(f"{sum(whys.values())} of {SPACE.size} rejected: ")
    assert all(f"{count} {why}" in summary(found.trials) for why, count in whys.items())
    assert all(t.reason for t in found.trials if t.state == "rejected")


def test_a_wrong_result_never_wins_even_if_it_is_the_quickest() -> None:
    found = search(None, Toy(wrong=lambda s: s.rows == 128), SPACE.size)
    assert found.schedule is not None and found.schedule.rows == 64


def test_what_is_too_large_is_never_compiled() -> None:
    compiler = Compiler()
    search(None, Toy(), SPACE.size, compiler)
    assert not any(s.rows * s.block * s.stages > 128 * 64 * 2 for s in compiler.compiled)


def test_a_win_within_the_noise_is_no_win() -> None:
    toy = Toy(noise=10.0)
    found = search(None, toy, 40)
    assert found.schedule == Schedule() and toy.kept[-1][0] == Schedule()


def test_if_the_default_is_wrong_another_takes_its_place() -> None:
    found = search(None, Toy(wrong=lambda s: s == Schedule()), 30)
    assert found.trials[0].why == "wrong result"
    assert found.schedule not in (None, Schedule())


def test_if_nothing_can_be_used_there_is_no_winner() -> None:
    toy = Toy(wrong=lambda s: True)
    found = search(None, toy, 20)
    assert found.schedule is None and toy.kept == []


def test_the_next_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    first = search(path, Toy(), 20)
    toy, compiler = Toy(), Compiler()
    second = search(path, toy, 50, compiler)
    assert second.trials[:20] == first.trials and len(second.trials) == 50
    assert len({t.schedule for t in second.trials}) == 50
    winners = [t.schedule for t in first.trials if t.won]
    assert toy.admitted[0] == compiler.compiled[0] == winners[-1]


def test_a_finished_search_is_not_repeated(tmp_path: Path) -> None:
    path, compiler = tmp_path / "trials.db", Compiler()
    first = search(path, Toy(), 20)
    second = search(path, Toy(), 20, compiler)
    assert second.trials == first.trials and second.schedule == first.schedule
    assert compiler.compiled == [first.schedule]


def test_an_interrupt_ends_cleanly_and_keeps_what_was_found(tmp_path: Path) -> None:
    path, toy = tmp_path / "trials.db", Toy()
    found = search(path, toy, 60, Compiler(interrupt_after=5))
    assert found.stopped == "interrupted"
    assert toy.kept and toy.kept[-1][0] == found.schedule
    lost = [t for t in found.trials if t.state == "lost"]
    assert lost and all(t.reason == "interrupted" for t in lost)
    again = search(path, Toy(), 60)
    ended = [t.schedule for t in again.trials if t.state != "lost"]
    assert len(ended) == len(set(ended)) == 60


def breaks_device(schedule: Schedule) -> bool:
    return (schedule.rows, schedule.block, schedule.stages) == (128, 32, 2)


class Breaking(Toy):
    """Eight warps fail while they are timed; some with 128 rows take the device with them."""

    def compare(self, challenger: Schedule, incumbent: Schedule, final: bool) -> Comparison:
        if challenger.warps == 8 or breaks_device(challenger):
            raise Unfit(Rejection("crash", "boom"), breaks_device(challenger))
        return super().compare(challenger, incumbent, final)


def test_a_candidate_that_breaks_the_device_is_not_tried_again(tmp_path: Path) -> None:
    path, crashes = tmp_path / "trials.db", 0
    while True:
        try:
            found = search(path, Breaking(), SPACE.size)
            break
        except Unfit:
            crashes += 1
    tried = [t for t in found.trials if t.state != "lost"]
    assert len(tried) == len({t.schedule for t in tried}) == SPACE.size
    broken = [t for t in tried if t.why == "crash"]
    assert {t.schedule.warps == 8 or breaks_device(t.schedule) for t in broken} == {True}
    assert crashes == sum(breaks_device(t.schedule) for t in broken) == 4
    assert found.schedule is not None and found.schedule.warps != 8 and not breaks_device(found.schedule)


class Slow(Compiler):
    """Compiles the default last."""

    def finished(self, deadline: float) -> Sequence[tuple[int, Built | Rejection]]:
        number = max(self.jobs)
        return [(number, self._build(self.jobs.pop(number)))]


def test_others_wait_for_a_default_that_compiles_slowly() -> None:
    toy = Toy()
    found = search(None, toy, 12, Slow())
    assert toy.admitted[0] == Schedule() and len(found.trials) == 12
    assert found.trials[0].won and found.trials[0].ratio == 1.0


def test_time_is_up(tmp_path: Path) -> None:
    found = Search(Toy(), Study(None, "toy", SPACE), Compiler(), Budget(60, deadline=0.0), None).run()
    assert found.stopped == "time is up"
    assert [t.schedule for t in found.trials] == [Schedule()]


def test_progress_counts_up_to_the_end() -> None:
    seen: list[Progress] = []
    found = search(None, Toy(), 30, show=seen.append)
    assert [p.done for p in seen] == list(range(1, 31))
    assert {p.total for p in seen} == {30}
    assert seen[-1].rejected == sum(t.state == "rejected" for t in found.trials)
    assert seen[-1].seconds_left == 0.0 and all(p.seconds_left > 0 for p in seen[:-1])
    assert "30 of 30 tried" in str(seen[-1])


def test_a_trial_reads_back() -> None:
    from sparsec.autotune.trial import trial_from

    trial = Trial(3, Schedule(lanes=("n",)), "timed", ratio=0.5, seconds=1.0, won=True, built=Built(1.0, 3, None, 5))
    assert trial_from(trial.to_json()) == trial
