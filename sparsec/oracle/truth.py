"""What a variant computes, exactly: all rows, some rows, or one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from sparsec.ir.dims import bind
from sparsec.ir.error import InputError
from sparsec.ir.lengths import lengths, position
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant
from sparsec.oracle.evaluate import Evaluation
from sparsec.oracle.form import FORMS, FormName
from sparsec.oracle.states import Written
from sparsec.oracle.values import Bank, Chosen, HandedBack, Mask, Memory, OracleError, Output, Value

Result = Tensor | tuple[Tensor, ...]
Inputs = Mapping[str, Tensor]
Shown = Tensor | Memory | Chosen | Bank | Written | HandedBack


@overload
def oracle(
    variant: Variant,
    inputs: Inputs,
    *,
    form: FormName = ...,
    q_offset: int | None = ...,
    return_all: Literal[False] = ...,
) -> Result: ...
@overload
def oracle(
    variant: Variant, inputs: Inputs, *, form: FormName = ..., q_offset: int | None = ..., return_all: Literal[True]
) -> tuple[Result, dict[str, Shown]]: ...
def oracle(
    variant: Variant,
    inputs: Inputs,
    *,
    form: FormName = "loop",
    q_offset: int | None = None,
    return_all: bool = False,
) -> Result | tuple[Result, dict[str, Shown]]:
    """The outputs of a variant in fp64; a selection comes as int64 ids ``[B,TQ,HS,K]`` with −1 pads.

    ``form="loop"`` goes token by token; ``form="vector"`` takes blocks of rows and serves lengths up to a few
    thousand. Both are differentiable by autograd. q_offset is the position of query row 0, by default TK − TQ,
    0 where there are no keys. With ``return_all`` comes the value of every node by name: lists with the scores that
    they were ranked by, masks as bools. Beside its inputs, any node may be given by name: its value is then used, not
    computed. Raises InputError, and OracleError for what has no meaning yet.
    """
    ev = evaluation(variant, inputs, form, q_offset)
    result = _result(variant, [ev.whole(node) for node in variant.outputs], ev)
    if not return_all:
        return result
    return result, {variant.names[node]: _shown(ev.whole(node), ev) for node in variant.nodes}


def oracle_rows(
    variant: Variant, inputs: Inputs, rows: Sequence[int] | Tensor, *, q_offset: int | None = None
) -> Result:
    """The outputs at some query rows, computed without the others: for sampled checks of lengths too great for all.

    Raises InputError and OracleError as `oracle`, the latter for a variant with gradients too, whose rows are not all
    those of queries.
    """
    if any(node.op is Op.VJP for node in variant.nodes):
        raise OracleError(f"{variant.name} has gradients, which no few rows give; use oracle")
    ev = evaluation(variant, inputs, "vector", q_offset)
    index = torch.as_tensor(rows, dtype=torch.int64, device=ev.device)
    return _result(variant, ev.at(variant.outputs, index), ev)


def evaluate_node(
    variant: Variant, node: Node | str, inputs: Inputs, *, form: FormName = "loop", q_offset: int | None = None
) -> Shown:
    """The value of one node; give what feeds it by name among the inputs to check a kernel on what it read."""
    ev = evaluation(variant, inputs, form, q_offset)
    return _shown(ev.whole(_named(variant, node) if isinstance(node, str) else node), ev)


def evaluation(variant: Variant, inputs: Inputs, form: FormName, q_offset: int | None) -> Evaluation:
    """Inputs checked against the declaration, made fp64 and bound to their nodes."""
    if form not in FORMS:
        raise InputError("form", repr(form), "there is no such form of the oracle", did_you_mean(str(form), FORMS))
    _check_kinds(variant, inputs)
    declared = {name: inputs[name] for name in inputs if name in variant.inputs}
    replaced = {_named(variant, name): inputs[name] for name in inputs if name not in variant.inputs}
    dims = bind(variant, {name: tuple(x.shape) for name, x in declared.items()})
    length = lengths(variant)
    offset = length.offset(dims) if q_offset is None else position(q_offset)
    known: dict[Node, Value] = {node: _exact(declared[str(node["name"])]) for node in variant.parameters}
    known |= {node: _given(node, x) for node, x in replaced.items()}
    device = next(iter(inputs.values())).device if inputs else torch.device("cpu")
    return Evaluation(known, dims, form, offset, device, length.query_count(dims), _storage(variant, declared))


def _storage(variant: Variant, inputs: Mapping[str, Tensor]) -> torch.dtype | None:
    """The dtype of the inputs that are declared float; None where it is fp64, or there is no one dtype."""
    found = {x.dtype for name, x in inputs.items() if variant.inputs[name].dtype == "float"}
    return found.pop() if len(found) == 1 and torch.float64 not in found else None


def _check_kinds(variant: Variant, inputs: Mapping[str, object]) -> None:
    """What is given are tensors, whole numbers for int32 inputs and floats for the others."""
    for name, x in inputs.items():
        if not isinstance(x, Tensor):
            raise InputError(name, f"a {type(x).__name__}", "inputs are tensors", "torch.as_tensor(…)")
        spec = variant.inputs.get(name)
        if spec is not None and x.is_floating_point() == (spec.dtype == "int32"):
            raise InputError(name, f"dtype {x.dtype}", f"it is declared {spec.dtype}", "convert it with .to()")


def _named(variant: Variant, name: str) -> Node:
    nodes = {known: node for node, known in variant.names.items()}
    if name not in nodes:
        raise InputError(name, "unknown", f"{variant.name} has no such input or node", did_you_mean(name, nodes))
    return nodes[name]


def _exact(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _given(node: Node, x: Tensor) -> Value:
    """A tensor as the value of a node that is not an input."""
    if node.kind == "memory":
        raise InputError(
            node.op.value, "a memory", "only tensors, scores and lists can be given", "give what it is made of"
        )
    if node.kind == "selection":
        return Chosen(x.to(torch.int64), node.integer("size"))
    return _exact(x)


def _shown(value: Value, ev: Evaluation) -> Shown:
    if isinstance(value, Output):
        return value.o
    return value.visible(ev.dims.get("H", 1)) if isinstance(value, Mask) else value


def _result(variant: Variant, values: Sequence[Value], ev: Evaluation) -> Result:
    shown = [_shown(value, ev) for value in values]
    lists = tuple(value.ids if isinstance(value, Chosen) else value for value in shown)
    plain = tuple(value.last if isinstance(value, Written) else value for value in lists)
    assert all(isinstance(value, Tensor) for value in plain), "a variant returns tensors"
    tensors = tuple(value for value in plain if isinstance(value, Tensor))
    return tensors[0] if len(variant.outputs) == 1 else tensors
