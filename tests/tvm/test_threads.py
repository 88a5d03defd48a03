"""How many threads CPU kernels have."""

from __future__ import annotations

import pytest

from sparsec.backends.tvm.threads import cores, threads


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"OMP_NUM_THREADS": "3"}, 3), ({"TVM_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}, 2), ({}, cores())],
)
def test_kernels_have_as_many_threads_as_torch(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: int
) -> None:
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert threads() == expected
