"""Fixtures and settings shared by every test: golden files, a private cache folder, few threads, steady hypothesis."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

Golden = Callable[[str], None]

# Two workers on two cores: a pool of threads in each would only make them wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --update-golden."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files from this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked gpu where torch sees no GPU, asking torch if there are any; workers begin with slow files."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        _slow_files_first(items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU on this machine"))


def _slow_files_first(items: list[pytest.Item]) -> None:
    """Files with tests marked slow go first, whole: what workers share out at the end is short."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leaves what collection made, tests and libraries by the million objects, out of every search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Gives it back, so that libraries find nothing left over when the process ends."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the user's own cache out of the tests, and the tests out of it."""
    os.environ["SPARSEC_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Fails a test in a worker whose process has more of torch's threads than the worker was given.

    Two workers with two threads each on two cores wait for one another: small products take up to fifty times longer.
    """
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        import torch

        assert torch.get_num_threads() <= int(os.environ["OMP_NUM_THREADS"]), "torch's threads were set"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares text with golden/<test file>/<test name>.txt beside the test file; --update-golden writes it."""
    name = re.sub(r"[^\w.=-]+", "-", request.node.name).strip("-")
    path = Path(request.path).parent / "golden" / Path(request.path).stem / f"{name}.txt"
    text_of = _write if request.config.getoption("--update-golden") else _read

    def check(text: str) -> None:
        assert text.rstrip("\n") + "\n" == text_of(path, text), f"differs from {path}; see --update-golden"

    return check


def _write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n")
    return path.read_text()


def _read(path: Path, _text: str) -> str:
    assert path.exists(), f"{path} does not exist; run pytest --update-golden"
    return path.read_text()
