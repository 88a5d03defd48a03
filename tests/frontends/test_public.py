"""The public face: complete, lazy, quick to import, free of everything heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sparsec

HEAVY = ("torch", "triton", "tvm", "sympy", "networkx", "optuna", "numpy", "rich", "typer")
DECLARE = """
import sys, time
start = time.perf_counter()
import sparsec
took = time.perf_counter() - start
loaded = {name.split(".")[0] for name in sys.modules}
variant = sparsec.preset("hsa")
assert sparsec.parse(variant.text()) == variant
for preset in sparsec.presets():
    sparsec.preset(preset.name).digest
sparsec.from_flex(mask_mod=lambda b, h, q, kv: q >= kv)
after = {name.split(".")[0] for name in sys.modules}
print(took, sorted((loaded | after) & set(HEAVY)))
"""


def test_import_is_quick_and_declaring_needs_nothing_heavy() -> None:
    program = DECLARE.replace("set(HEAVY)", repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    took, loaded = done.stdout.split(" ", 1)
    assert float(took) < 0.5
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in sparsec.__all__ if name != "__version__"])
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(sparsec, name) is not None
    assert name in dir(sparsec)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'presset'.*preset"):
        sparsec.presset  # noqa: B018


def test_modules_that_the_readme_names_are_attributes() -> None:
    """In a process of its own: any import of them would make them attributes here."""
    program = "import sparsec; print(sparsec.nn.Layer.__name__, sparsec.compat.fla.chunk_gla.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["Layer", "chunk_gla"], done.stderr
