"""The trial database: Optuna proposes configurations and keeps every trial. No other file imports optuna."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from sparsec.autotune.lock import one_by_one
from sparsec.autotune.space import Params, Space
from sparsec.autotune.trial import Trial, TuneError, trial_from
from sparsec.tile.schedule import Schedule

ROW, STARTED = "trial", "started"
STARTUP = 10
DRAWS = 12
DAMAGED = ("file is not a database", "malformed")
"""What SQLite says of a damaged file; one that is locked, or a full disk, leaves it as it is."""
BUSY_S = 30.0
"""Another process may hold the database so long."""


class _Fresh(optuna.samplers.BaseSampler):
    """Tree-structured Parzen estimation over a whole space, which never proposes what was proposed before."""

    def __init__(self, space: Space, is_new: Callable[[Params], bool], seed: int) -> None:
        self.space, self.is_new, self.rng = space, is_new, random.Random(seed)
        self.wanted: Params | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.inner = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=seed
            )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: CategoricalDistribution(values) for name, values in self.space.choices.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self.wanted is not None:
            return dict(self.wanted)
        free = {name: d for name, d in search_space.items() if not d.single()}
        sampled = self.inner.sample_relative(study, trial, free)
        if not sampled:
            return self._near(self._random(), len(free))
        return self._near({name: values[0] for name, values in self.space.choices.items()} | sampled, 0)

    def _random(self) -> Params:
        return {name: self.rng.choice(values) for name, values in self.space.choices.items()}

    def _near(self, params: Params, changes: int) -> Params:
        """The configuration itself if it is new, else one that differs in as few fields as a few draws find."""
        while changes <= len(params):
            for _ in range(DRAWS if changes else 1):
                moved = {
                    name: self.rng.choice(self.space.choices[name]) for name in self.rng.sample([*params], changes)
                }
                if self.is_new(params | moved):
                    return params | moved
            changes += 1
        return self.rng.choice([p for p in self.space.configurations() if self.is_new(p)])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} belongs to the relative space")


class Study:
    """The trials of one kernel on one target: proposed, kept as they end, and found again by the next run.

    Trials that a killed process left open are closed when the study is opened; a configuration that was being run when
    two processes died is not tried a third time. The caller sees to it that one process at a time opens a name.
    """

    def __init__(self, path: Path | None, name: str, space: Space, seed: int = 0) -> None:
        self.space, self.closed, self._path = space, 0, path
        self._proposed: set[Schedule] = set()
        self._sampler = _Fresh(space, lambda params: space.schedule(params) not in self._proposed, seed)
        with _quiet(), self._reached():
            self._study = optuna.create_study(
                storage=_storage(path), study_name=name, sampler=self._sampler, load_if_exists=True
            )
        self._open: dict[int, optuna.Trial] = {}
        with self._reached():
            self._close_orphans()
        self._proposed = {t.schedule for t in self.trials() if t.state != "lost"}

    def trials(self) -> list[Trial]:
        """Every trial that has ended, by number."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        with self._reached():
            found = self._study.get_trials(deepcopy=False, states=ended)
        return [trial_from(t.user_attrs[ROW]) for t in found if ROW in t.user_attrs]

    def ask(self, wanted: Schedule | None = None) -> tuple[int, Schedule] | None:
        """A configuration that was not tried yet (or the one wanted) and its number; None where all were tried."""
        if wanted is None and len(self._proposed) >= self.space.size:
            return None
        self._sampler.wanted = None if wanted is None else self.space.params(wanted)
        with self._reached():
            trial = self._study.ask({n: CategoricalDistribution(v) for n, v in self.space.choices.items()})
        schedule = self.space.schedule(trial.params)
        self._proposed.add(schedule)
        self._open[trial.number] = trial
        return trial.number, schedule

    def start(self, number: int) -> None:
        """Note that this trial's kernel is about to run in this process."""
        with self._reached():
            self._open[number].set_user_attr(STARTED, True)

    def tell(self, trial: Trial) -> None:
        """Keep a trial that has ended; a lost one may be proposed again."""
        with self._reached():
            self._open.pop(trial.number).set_user_attr(ROW, trial.to_json())
            self._finish(trial)
        if trial.state == "lost":
            self._proposed.discard(trial.schedule)

    @property
    def open(self) -> dict[int, Schedule]:
        """The trials that have not ended."""
        return {number: self.space.schedule(trial.params) for number, trial in self._open.items()}

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises TuneError where another process holds the database for too long, or the disk is full."""
        try:
            yield
        except optuna.exceptions.StorageInternalError as error:
            said = str(error.__cause__ or error).partition("\n")[0]
            raise TuneError(
                f"the trial database {self._path} could not be used for {BUSY_S:.0f} s: {said}; one process at a time "
                "writes to it, and the trials in it are kept: end whoever holds it and start again, or set "
                "SPARSEC_CACHE_DIR to another folder"
            ) from error

    def _finish(self, trial: Trial) -> None:
        if trial.state == "timed":
            self._study.tell(trial.number, trial.ratio)
        else:
            self._study.tell(trial.number, state=TrialState.PRUNED if trial.state == "rejected" else TrialState.FAIL)

    def _close_orphans(self) -> None:
        """End what a killed process left open, keeping a verdict that it had already written."""
        killed = Counter(t.schedule for t in self.trials() if t.state == "lost" and t.why == "crash")
        for old in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            row = trial_from(old.user_attrs[ROW]) if ROW in old.user_attrs else self._orphan(old, killed)
            if ROW not in old.user_attrs:
                optuna.trial.Trial(self._study, old._trial_id).set_user_attr(ROW, row.to_json())
                self.closed += 1
            self._finish(row)

    def _orphan(self, old: FrozenTrial, killed: Counter[Schedule]) -> Trial:
        schedule = self.space.schedule({n: v for n, v in old.params.items() if n in self.space.choices})
        if not old.user_attrs.get(STARTED):
            return Trial(old.number, schedule, "lost", reason="the tuner was killed before this trial began")
        if killed[schedule]:
            return Trial(old.number, schedule, "rejected", "crash", "the tuner died twice while this kernel ran")
        return Trial(old.number, schedule, "lost", "crash", "the tuner was killed while this kernel ran")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's note that a study was made."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _storage(path: Path | None) -> optuna.storages.BaseStorage:
    """SQLite in a file, or memory where there is none; a file that is no database is set aside."""
    if path is None:
        return optuna.storages.InMemoryStorage()
    with one_by_one(path):  # who finds no tables makes them, which only one may
        try:
            return _sqlite(path)
        except Exception as error:  # SQLAlchemy wraps what sqlite3 raises, Optuna wraps that again
            if not any(sign in str(error) for sign in DAMAGED):
                raise TuneError(f"the trial database {path} cannot be opened: {error}; check the folder") from error
        path.replace(path.with_suffix(".corrupt"))
        return _sqlite(path)


def _sqlite(path: Path) -> optuna.storages.RDBStorage:
    """Write-ahead logging: a commit outlives a kill of the process without waiting for the disk."""
    import sqlite3

    with sqlite3.connect(path, timeout=BUSY_S) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA quick_check")
    connection.close()
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_S}})
    from sqlalchemy import event

    event.listen(storage.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=NORMAL"))
    storage.engine.dispose()
    return storage
