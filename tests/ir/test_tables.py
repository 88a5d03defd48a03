"""Every op has its row in every table, and the constructors say the same as the schema."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from sparsec.ir import build, build_state
from sparsec.ir.infer import INFER
from sparsec.ir.op import Op
from sparsec.ir.schema import REQUIRED, SCHEMA, Required
from sparsec.ir.verify import RULES

# Constructor parameters that are not an attribute of the same name, by op.
OTHERWISE = {Op.INPUT: {"dtype"}, Op.ATTEND: {"sink"}, Op.WRITE: {"decay_kind"}, Op.MERGE: {"gates"}}


def constructor(op: Op) -> Callable[..., Any]:
    """The public function that builds an op's node."""
    found: Callable[..., Any] = getattr(build, op.value, None) or getattr(build_state, op.value)
    return found


@pytest.mark.parametrize("table", [SCHEMA, RULES, INFER], ids=["schema", "rules", "infer"])
def test_every_op_has_a_row(table: dict[Op, object]) -> None:
    assert set(table) == set(Op)


@pytest.mark.parametrize("op", Op)
def test_the_constructor_takes_what_the_schema_says(op: Op) -> None:
    schema, parameters = SCHEMA[op], inspect.signature(constructor(op)).parameters
    named = {*schema.attrs, *schema.operands}
    keywords = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keywords - OTHERWISE.get(op, set()) <= named
    assert named - {"name", "shape", "dtype"} <= keywords
    assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()) == schema.captures


@pytest.mark.parametrize("op", Op)
def test_defaults_agree(op: Op) -> None:
    parameters = inspect.signature(constructor(op)).parameters
    for name, attr in SCHEMA[op].attrs.items():
        if name in parameters and name not in OTHERWISE.get(op, set()) and op is not Op.INPUT:
            stated = parameters[name].default
            required = stated is inspect.Parameter.empty
            assert (REQUIRED if required else stated) is attr.default or stated == attr.default, (op, name)


def test_choices_hold_their_default() -> None:
    choices = [(op, name, attr) for op, row in SCHEMA.items() for name, attr in row.attrs.items() if attr.choices]
    assert choices
    for op, name, attr in choices:
        assert isinstance(attr.default, Required) or attr.default in (*attr.choices, None), (op, name)
