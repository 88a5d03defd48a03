"""One installed package out of five top-level folders: the list, the links, the wheel, and a light import."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
LINKS = tuple(folder for folder in FOLDERS.values() if folder != "sparsec")
HEAVY = ("numpy", "torch", "triton", "tvm", "sympy", "networkx", "optuna")


def in_a_fresh_process(code: str, cwd: Path) -> str:
    """What a Python that knows nothing but the installed package prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=60).stdout


def sources(folder: Path) -> list[Path]:
    """Python files under a folder, without those that are there only through a link."""
    found = sorted(folder.rglob("*.py"))
    return [path for path in found if not any(parent.is_symlink() for parent in path.parents)]


def test_pyproject_lists_every_package() -> None:
    found = {
        ".".join([package, *path.relative_to(ROOT / folder).parts[:-1]])
        for package, folder in FOLDERS.items()
        for path in sources(ROOT / folder)
    }
    assert found == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_package_has_an_init(package: str) -> None:
    assert (ROOT / package.replace(".", "/") / "__init__.py").is_file()


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative(name: str) -> None:
    link = ROOT / "sparsec" / name
    assert link.readlink() == Path("..", name)
    assert link.resolve() == ROOT / name


def test_no_module_has_two_identities(tmp_path: Path) -> None:
    code = f"import sparsec, importlib.util as u; print([name for name in {LINKS} if u.find_spec(name)])"
    assert in_a_fresh_process(code, tmp_path).strip() == "[]"


def test_import_is_light(tmp_path: Path) -> None:
    code = f"import sys, sparsec; print([name for name in {HEAVY} if name in sys.modules])"
    assert in_a_fresh_process(code, tmp_path).strip() == "[]"


def test_import_is_quick(tmp_path: Path) -> None:
    code = "import time; start = time.perf_counter(); import sparsec; print(time.perf_counter() - start)"
    assert min(float(in_a_fresh_process(code, tmp_path)) for _ in range(3)) < 0.5


def test_version_is_the_declared_one() -> None:
    assert importlib.metadata.version("sparsec") == PROJECT["project"]["version"]


def test_wheel_holds_every_module(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("sparsec", *LINKS):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, checkout)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(checkout)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, timeout=120)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    expected = {
        str(Path(package.replace(".", "/")) / path.relative_to(ROOT / folder))
        for package, folder in FOLDERS.items()
        for path in sources(ROOT / folder)
    }
    native = ROOT / "sparsec/runtime/native"
    data = {str(path.relative_to(ROOT)) for path in native.iterdir() if path.suffix in (".cpp", ".h")}
    assert data and {name for name in names if ".dist-info/" not in name} == expected | data | {"sparsec/py.typed"}
