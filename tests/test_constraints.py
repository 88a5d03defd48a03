"""Both sets of pins resolve for everything that sparsec declares, and say the versions that they promise."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted((ROOT / "constraints").glob("*.txt"))
PINNED = re.compile(r"[A-Za-z0-9._-]+==[\w.+]+")


def dry_run(*arguments: str, seconds: int) -> subprocess.CompletedProcess[str]:
    """pip install without installing; nothing already installed counts."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


@functools.cache
def index_answers() -> bool:
    """Whether pip can reach any package index from here."""
    try:
        return dry_run("--no-deps", "--retries", "0", "--timeout", "20", "sympy==1.14.0", seconds=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


EVERYTHING = (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])
OF_TORCH = tuple(word for word in PROJECT["dependencies"] if word.startswith(("torch", "triton")))


def resolve(constraints: str, folder: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Versions that pip would install of what is wanted under one constraints file."""
    if not index_answers():
        pytest.skip("no package index answers here")
    report = folder / "report.json"
    file = str(ROOT / "constraints" / constraints)
    result = dry_run("--report", str(report), "-c", file, *wanted, seconds=300)
    if constraints == "cpu.txt" and re.search(r"torch 2\.13\.0 depends on triton", result.stderr + result.stdout):
        pytest.skip("pip finds only a CUDA build of torch here, which pins its own Triton; the set-up takes cuda.txt")
    assert result.returncode == 0, result.stderr
    items = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower(): item["metadata"]["version"].partition("+")[0] for item in items}


@pytest.mark.slow
def test_cpu(tmp_path: Path) -> None:
    versions = resolve("cpu.txt", tmp_path, EVERYTHING)
    expected = {"torch": "2.13.0", "triton": "3.9.0", "apache-tvm": "0.27.0.post1"}
    assert {name: versions[name] for name in expected} == expected


# Three equals signs compare text, so a CPU build (2.13.0+cpu) does not answer for the CUDA build that is meant.
@pytest.mark.slow
# Nothing else that is declared depends on torch, so the rest is resolved beside one of its versions.
@pytest.mark.parametrize(
    ("torch", "triton", "wanted"),
    [("2.11.0", "3.6.0", EVERYTHING), ("2.13.0", "3.7.1", OF_TORCH)],
    ids=["2.11", "2.13"],
)
def test_cuda_leaves_triton_to_torch(torch: str, triton: str, wanted: tuple[str, ...], tmp_path: Path) -> None:
    versions = resolve("cuda.txt", tmp_path, (*wanted, f"torch==={torch}"))
    assert (versions["torch"], versions["triton"]) == (torch, triton)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_hold_names_and_versions_only(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    other = [line for line in lines if not PINNED.fullmatch(line)]
    allowed = {"common.txt": [], "cpu.txt": ["-c common.txt"], "cuda.txt": ["-c common.txt", "torch>=2.11.0,<=2.13.0"]}
    assert other == allowed[file.name]


def test_every_declared_dependency_is_pinned() -> None:
    pinned = {line.partition("==")[0].lower() for file in FILES for line in file.read_text().splitlines()}
    extras = [name for extra in PROJECT["optional-dependencies"].values() for name in extra]
    declared = {re.split(r"[<>=;! ]", name)[0] for name in [*PROJECT["dependencies"], *extras]}
    assert declared <= pinned
