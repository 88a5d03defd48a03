"""The sign test's bounds: exact coverage, and what they say of noise and of real differences."""

from __future__ import annotations

import random
from itertools import product
from statistics import median

import pytest

from sparsec.autotune.measure import Rounds, compare
from sparsec.autotune.noise import bounds, outermost


@pytest.mark.parametrize("count", [7, 10, 11])
def test_the_bound_is_the_tightest_that_keeps_its_promise(count: int) -> None:
    k = outermost(count)
    assert k is not None
    heads = [sum(coins) for coins in product((0, 1), repeat=count)]
    wrong = [sum(h < limit for h in heads) / len(heads) for limit in (k + 1, k + 2)]
    assert wrong[0] <= 0.01 < wrong[1]


def test_six_rounds_are_too_few() -> None:
    assert outermost(6) is None
    assert bounds([0.5] * 6) == (0.0, float("inf"))
    assert bounds([0.5] * 7) == (0.5, 0.5)


class Machine:
    """A clock over kernels that are their own times, with drift and noise."""

    def __init__(self, seed: int, noise: float) -> None:
        self.rng, self.noise, self.load, self.running = random.Random(seed), noise, 1.0, 0.0

    def kernel(self, seconds: float) -> Kernel:
        return Kernel(self, seconds)

    def clock(self, run: object) -> float:
        assert isinstance(run, Kernel)
        self.load *= 1 + 0.02 * self.rng.random()
        return run.seconds * self.load * (1 + self.noise * self.rng.random())


class Kernel:
    """A kernel of the toy machine."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        self.machine, self.seconds = machine, seconds

    def __call__(self) -> None:
        pass


def wins(seed: int, ratio: float, noise: float = 0.1) -> bool:
    machine = Machine(seed, noise)
    return compare(machine.kernel(ratio), machine.kernel(1.0), machine.clock).wins


def test_equal_kernels_hardly_ever_win() -> None:
    assert sum(wins(seed, 1.0) for seed in range(400)) <= 12


def test_a_fifth_quicker_always_wins_under_drift_and_noise() -> None:
    assert all(wins(seed, 0.8) for seed in range(100))


def test_a_hopeless_challenger_is_timed_once_and_a_slow_one_thrice() -> None:
    machine = Machine(0, 0.01)
    assert compare(machine.kernel(3.0), machine.kernel(1.0), machine.clock).rounds == 1
    slow = compare(machine.kernel(1.3), machine.kernel(1.0), machine.clock)
    assert slow.rounds == 3 and not slow.wins


def test_a_clear_winner_is_found_after_seven_rounds() -> None:
    machine = Machine(0, 0.01)
    found = compare(machine.kernel(0.5), machine.kernel(1.0), machine.clock)
    assert found.wins and found.rounds == 7 and found.ratio == pytest.approx(0.5, rel=0.05)
    assert found.seconds < found.incumbent_s


def test_the_final_look_takes_more_rounds() -> None:
    machine = Machine(0, 0.3)
    final = Rounds(screen=15, looks=(15, 25))
    assert compare(machine.kernel(0.97), machine.kernel(1.0), machine.clock, final).rounds in (15, 25)


def test_the_ratio_is_the_median_of_paired_rounds() -> None:
    times = {"a": iter([2.0, 1.0, 9.0] * 9), "b": iter([1.0] * 40)}
    runs = {name: Kernel(Machine(0, 0), 0) for name in times}
    names = {id(run): name for name, run in runs.items()}
    found = compare(runs["a"], runs["b"], lambda run: next(times[names[id(run)]]), Rounds(screen=99, looks=(15,)))
    assert found.ratio == median([2.0, 1.0, 9.0])
