"""What a matcher carries out: the attributes it names, and no other that says anything."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.schema import SCHEMA
from sparsec.plan.planner import Planner


def honours(planner: Planner, node: Node, *names: str) -> None:
    """Refuse a node with an attribute that its kernel would leave out.

    Args:
        names: the attributes that the matcher reads; any other must have its default.

    Raises:
        PlanError: names the node, the attribute and its value, and what is carried out.
    """
    defaults = SCHEMA[node.op].attrs
    for name, value in node.attrs:
        if name in defaults and name not in names and repr(value) != repr(defaults[name].default):
            known = ", ".join(names) or "no attribute"
            raise planner.refuse(node, f"{name} = {value} has no kernel here; what is carried out: {known}")
