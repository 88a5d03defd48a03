"""Settings that cannot be (sizes, positions, dtypes, forms, targets) are refused in a sentence with a fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsec
from sparsec.ir.error import DeclarationError, InputError
from sparsec.oracle import oracle
from sparsec.runtime.compiled import compile
from sparsec.runtime.target import TargetError

FULL = sparsec.preset("full")


def sized(**sizes: int) -> Callable[[], object]:
    """A call with these heads and head dims; the oracle must refuse them as kernels do."""

    def run() -> object:
        variant, dims = sparsec.preset("full"), {"H": 2, "HKV": 1, "D": 16, "DV": 16} | sizes
        given = {"q": torch.zeros(1, 5, dims["H"], dims["D"]), "k": torch.zeros(1, 5, dims["HKV"], dims["D"])}
        given["v"] = torch.zeros(1, 5, dims["HKV"], dims["DV"])
        with pytest.raises(InputError):
            oracle(variant, given)
        return compile(variant, "interpreter")(None, **given)

    return run


def placed(q_offset: object) -> Callable[[], object]:
    """A call with the first query there."""

    def run() -> object:
        variant = sparsec.preset("full")
        given = sparsec.inputs(variant, T=5, H=2, HKV=1, D=16, DV=16)
        with pytest.raises(InputError, match="q_offset"):
            oracle(variant, given, q_offset=q_offset)  # type: ignore[call-overload]
        return compile(variant, "interpreter")(q_offset, **given)

    return run


def exactly(**changes: object) -> Callable[[], object]:
    """The oracle on inputs some of which are others."""
    given: dict[str, object] = {**sparsec.inputs(FULL, T=5), **changes}
    return lambda: oracle(FULL, given)  # type: ignore[arg-type]


def formed() -> object:
    """The oracle in a form that it does not have."""
    variant = sparsec.preset("full")
    return oracle(variant, sparsec.inputs(variant, T=5), form="vectr")  # type: ignore[call-overload]


SETTINGS: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "no heads": (sized(H=0), "attend", "H = 0", "at least one"),
    "no key heads": (sized(HKV=0), "attend", "HKV = 0", "at least one"),
    "no columns": (sized(D=0), "attend", "D = 0", "at least one"),
    "no columns of values": (sized(DV=0), "attend", "DV = 0", "at least one"),
    "a position between two": (placed(1.5), "q_offset", "1.5", "int"),
    "a position in words": (placed("3"), "q_offset", "'3'", "int"),
    "a position beyond 32 bits": (placed(2**31), "q_offset", "2147483648", "int"),
    "a list for a tensor": (exactly(q=[1.0]), "q", "a list", "as_tensor"),
    "whole numbers for floats": (exactly(q=torch.ones(1, 5, 4, 64, dtype=torch.int64)), "q", "int64", ".to()"),
    "a device that is none": (lambda: sparsec.inputs(FULL, device="zork"), "device", "zork", "cpu"),
    "a size that is true": (lambda: sparsec.inputs(FULL, T=True), "T", "True", "0 or more"),
    "heads that are no groups": (lambda: sparsec.inputs(FULL, H=5, HKV=2), "attend", "H = 5, HKV = 2", "evenly"),
    "a form that is none": (formed, "form", "'vectr'", "vector"),
    "a dtype that is none": (
        lambda: sparsec.inputs(sparsec.preset("full"), dtype="floaty"),
        "dtype",
        "floaty",
        "float",
    ),
    "sources without heads": (
        lambda: compile(sparsec.preset("full"), "cpu").source({}),
        "dims",
        "D, DV, H, HKV",
        "D = ",
    ),
    "costs without lengths": (
        lambda: compile(sparsec.preset("full"), "cpu").explain({"H": 2, "HKV": 1, "D": 16, "DV": 16}),
        "dims",
        "B, TK, TQ missing",
        "B = ",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case: str) -> None:
    run, name, said, fix = SETTINGS[case]
    with pytest.raises(InputError) as caught:
        run()
    error = caught.value
    assert name in error.name and said in f"{error.value}: {error.rule}" and fix in error.fix and error.fix


def test_what_is_no_variant_or_no_name(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="compile: 'full': it takes a variant"):
        compile("full")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="target 5 is no name"):
        compile(sparsec.preset("full"), 5)  # type: ignore[arg-type]
    assert compile(sparsec.preset("full"), "cpu", str(tmp_path)).cache_dir == tmp_path
    assert compile(sparsec.preset("full"), "cpu").source({"H": 2, "HKV": 1, "D": 16, "DV": 16}), (
        "lengths may be left out"
    )
