"""The cache of shared libraries: found again, rebuilt when damaged, never half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsec.backends.tvm import build as building
from sparsec.backends.tvm import pipeline
from sparsec.backends.tvm.build import CacheError, compile, is_whole
from sparsec.testing.tile.case import Case
from sparsec.testing.tile.cases import CASES
from sparsec.tile.schedule import Schedule

ROOT = Path(__file__).parents[2]


def works(case: Case, folder: Path) -> Path:
    """Compile, run, compare; the library's path."""
    kernel, tensors = compile(case.program, Schedule(), folder), case.tensors()
    kernel([tensors[t.name] for t in case.program.tensors], case.params)
    assert case.error(tensors) <= case.tolerance
    assert kernel.library is not None
    return kernel.library


def test_a_library_is_used_again_until_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, built = CASES["gather"](), list[str]()

    def counted(source: str) -> Any:
        built.append(source)
        return pipeline.build(source)

    monkeypatch.setattr(building, "build", counted)
    library = works(case, tmp_path)
    assert works(case, tmp_path) == library and len(built) == 1
    assert [*tmp_path.iterdir()] == [library]
    damaged = tmp_path / "other"
    damaged.mkdir()
    copy = damaged / library.name
    copy.write_bytes(library.read_bytes()[:-100])
    assert not is_whole(copy)
    fresh = works(case, damaged)
    assert is_whole(fresh) and len(built) == 2 and [*damaged.iterdir()] == [fresh]


def test_libraries_of_two_processes_stand_side_by_side(tmp_path: Path) -> None:
    """Whoever renames last: what a name promises is what the file holds, and either is used."""

    class Module:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def export_library(self, path: str) -> None:
            Path(path).write_bytes(self.content)

    one, other = (building._export(Module(content), "key", tmp_path) for content in (b"one", b"other"))
    assert one != other and is_whole(one) and is_whole(other) and len([*tmp_path.iterdir()]) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CacheError, match=f"cache folder {blocked / 'tvm'} cannot be written"):
        compile(CASES["gather"]().program, Schedule(), blocked / "tvm")


def test_without_a_linker_kernels_are_compiled_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "can_link", lambda: False)
    case, tensors = CASES["gather"](), CASES["gather"]().tensors()
    kernel = compile(case.program, Schedule(), tmp_path)
    kernel([tensors[t.name] for t in case.program.tensors], case.params)
    assert kernel.library is None and case.error(tensors) <= case.tolerance and not list(tmp_path.iterdir())


def test_loading_tvm_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """The excepthook, the cores of this thread and of torch's threads; all cores are used."""
    code = (
        "import os, sys; before = os.sched_getaffinity(0)\n"
        "from pathlib import Path\n"
        "from sparsec.backends.tvm.build import compile\n"
        "from sparsec.testing.tile.cases import CASES\n"
        "from sparsec.tile.schedule import Schedule\n"
        "case = CASES['gather'](); tensors = case.tensors()\n"
        f"compile(case.program, Schedule(), Path({str(tmp_path)!r}))(\n"
        "    [tensors[t.name] for t in case.program.tensors], case.params)\n"
        "assert sys.excepthook is sys.__excepthook__ and os.sched_getaffinity(0) == before\n"
        "from tvm.runtime import num_threads\n"
        "print(num_threads())\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TVM_", "OMP_"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(os.sched_getaffinity(0))


def test_threads_share_one_kernel(tmp_path: Path) -> None:
    """Kernels release the interpreter lock and keep no state between calls."""
    from concurrent.futures import ThreadPoolExecutor

    case = CASES["window"]()
    kernel = compile(case.program, Schedule(), tmp_path)

    def run(seed: int) -> float:
        tensors = case.tensors(seed)
        kernel([tensors[t.name] for t in case.program.tensors], case.params)
        return case.error(tensors)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, range(8))) <= case.tolerance
    assert torch.get_num_threads() >= 1
