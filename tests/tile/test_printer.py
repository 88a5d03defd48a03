"""Tile programs as text: the form in which `show --level tile` prints them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsec.testing.tile.cases import CASES
from sparsec.tile.printer import to_text


@pytest.mark.parametrize("name", ["gather", "prefix", "top_8_of_16"])
def test_program_text(name: str, golden: Callable[[str], None]) -> None:
    golden(to_text(CASES[name]().program))


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_a_text(name: str) -> None:
    program = CASES[name]().program
    text = to_text(program)
    assert text.startswith(f"program {program.name}(") and text.endswith("}\n")
    assert text.count("{") == text.count("}")
