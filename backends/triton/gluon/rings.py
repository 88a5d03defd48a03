"""The slots of keys and values in shared memory, and the barriers that say which is full and which is free again."""

from __future__ import annotations

from dataclasses import dataclass

FULL = ("keys_full", "values_full")
APART = ("keys_free", "values_free")


@dataclass(frozen=True, slots=True)
class Rings:
    """How a kernel's slots are numbered.

    Attributes:
        stages: slots of keys.
        values: slots of values.
        apart: whether keys and values are freed apart, each as soon as its product is done. Else the values of a turn
            lie a slot later, the first ones are zeros, and a turn's slot is freed when its sums are there.
    """

    stages: int
    values: int
    apart: bool = False

    @property
    def freed(self) -> tuple[str, ...]:
        """The barriers at which every group arrives, and the slots of each."""
        return APART if self.apart else ("free",)

    @property
    def barriers(self) -> tuple[str, ...]:
        """All of them."""
        return (*FULL, *self.freed)

    def slots(self, barrier: str) -> int:
        """How many there are of a barrier."""
        return self.values if barrier.startswith("values") and self.apart else self.stages

    @property
    def scored(self) -> list[str]:
        """What a group says once a turn's scores are there."""
        return ["mbarrier.arrive(keys_free.index(slot), count=1)"] if self.apart else []

    @property
    def wait(self) -> list[str]:
        """For the values of this turn, which the next one needs. It stands where the exponentials end and before the
        wait for the sums, since ptxas moves that wait up to the scores, but not across a wait for a barrier, which is a
        branch."""
        if self.apart:
            return ["later = turn % VALUES", "mbarrier.wait(values_full.index(later), (turn // VALUES) & 1)"]
        return ["later = (turn + 1) % STAGES", "mbarrier.wait(values_full.index(later), ((turn + 1) // STAGES) & 1)"]

    def summed(self, before: str) -> list[str]:
        """What a group says once the values ``before`` are in its sums."""
        name = f"values_free.index({before})" if self.apart else "free.index(slot)"
        return [f"mbarrier.arrive({name}, count=1)"]


TWO = Rings(2, 2)
