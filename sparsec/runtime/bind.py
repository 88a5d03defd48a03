"""From the tensors of a call to concrete dims, with the checks that must precede any kernel."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsec.ir.error import InputError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant, dim_names
from sparsec.scalar.evaluate import evaluate

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_DTYPES = ("float32", "float16", "bfloat16")


def call_dtype(variant: Variant, tensors: Mapping[str, Tensor]) -> str:
    """The one dtype of the "float" inputs. Raises InputError where a dtype is unknown or two disagree."""
    found: dict[str, str] = {}
    for name, spec in variant.inputs.items():
        given = str(tensors[name].dtype).removeprefix("torch.")
        if spec.dtype == "float" and given not in FLOAT_DTYPES:
            raise InputError(name, f"dtype {given}", f"kernels take {', '.join(FLOAT_DTYPES)}", "convert it with .to()")
        if spec.dtype != "float" and given != spec.dtype:
            raise InputError(name, f"dtype {given}", f"the declaration says {spec.dtype}", f".to(torch.{spec.dtype})")
        if spec.dtype == "float":
            found.setdefault(given, name)
    if len(found) > 1:
        pairs = ", ".join(f"{n} is {d}" for d, n in found.items())
        raise InputError(list(found.values())[1], pairs, "all float inputs have one dtype", "convert one of them")
    return next(iter(found), "float32")


def float_dtype(variant: Variant, tensors: Sequence[Tensor]) -> str:
    """The dtype of the "float" inputs among inputs in order, unchecked."""
    found = (str(x.dtype) for spec, x in zip(variant.inputs.values(), tensors, strict=True) if spec.dtype == "float")
    return next(found, "float32").removeprefix("torch.")


def check_dims(variant: Variant, dims: Mapping[str, object], names: Sequence[str]) -> None:
    """Each of these dims is set."""
    missing = [name for name in names if name not in dims]
    if missing:
        rule = f"{variant.name} has the dims {', '.join(sorted(dim_names(variant)))}"
        raise InputError("dims", f"{', '.join(missing)} missing", rule, f"set {missing[0]} = …")


def check_names(variant: Variant, tensors: Mapping[str, object]) -> None:
    """Every input is given, nothing else, and each is a tensor."""
    import torch

    known = ", ".join(variant.inputs)
    for name in tensors:
        if name not in variant.inputs:
            raise InputError(name, "not an input", f"{variant.name} takes {known}", did_you_mean(name, variant.inputs))
    for name in variant.inputs:
        if name not in tensors:
            raise InputError(name, "missing", f"{variant.name} takes {known}", f"give it: {name}=…")
        if not isinstance(tensors[name], torch.Tensor):
            raise InputError(name, f"a {type(tensors[name]).__name__}", "inputs are tensors", "torch.as_tensor(…)")


def refuse_nameless(variant: Variant, given: Sequence[object], named: Mapping[str, object]) -> None:
    """Inputs go by name: what was given by place is shown with the names that are left."""
    left = [name for name in variant.inputs if name not in named]
    rule = f"{variant.name} takes {', '.join(variant.inputs)} by name"
    fix = f"layer({', '.join(f'{name}=…' for name in variant.inputs)})"
    raise InputError(left[0] if left else "q_offset", f"{len(given)} arguments without names", rule, fix)


def check_devices(tensors: Mapping[str, Tensor], device: str) -> None:
    """All inputs live on one device, that of the target, their last dim is dense, and memory has their own signs."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if x.device != first.device:
            places = f"{first_name} on {first.device}, {name} on {x.device}"
            raise InputError(name, places, "all inputs live on one device", f".to('{first.device}')")
        if x.device.type != device:
            fix = f".to('{device}'), or compile for another target"
            raise InputError(name, f"on {x.device}", f"the target's kernels run on {device}", fix)
        if x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise InputError(name, f"last stride {x.stride(-1)}", "the last dim is dense (stride 1)", ".contiguous()")
        if x.is_neg():
            raise InputError(name, "a view that negates", "kernels read memory as it is", ".resolve_neg()")


def check_indices(variant: Variant, tensors: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
    """Given lists name units that exist, each once, given counts fit; checked before a kernel reads."""
    for rule in index_rules(variant, dims):
        rule(*(tensors[name] for name in rule.names))


def index_rules(variant: Variant, dims: Mapping[str, int]) -> list[IndexRule]:
    """What must hold of given lists and counts at these dims."""
    found: list[IndexRule] = []
    for node in variant.nodes:
        for selection in node.positional[2:] if node.op is Op.ATTEND else ():
            if selection.op is Op.GIVEN:
                tokens = int(evaluate(node.src[1].shape[1], dims))
                found += _list_rules(selection, -(-tokens // selection.integer("size")), dims)
        route = node.operands.get("route") if node.op is Op.WRITE else None
        if route is not None and route.op is Op.GIVEN:
            found += _list_rules(route, int(evaluate(node.shape[1], dims)), dims)
    return found


def _list_rules(selection: Node, units: int, dims: Mapping[str, int]) -> list[IndexRule]:
    """The rules of a given list of so many units, and of its counts."""
    counts, slots = selection.operands.get("counts"), int(evaluate(selection.shape[3], dims))
    return _rule(selection, counts, 0, slots) + _rule(selection, selection.src[0], -1, units - 1, counts)


def _rule(selection: Node, source: Node | None, low: int, high: int, *beside: Node | None) -> list[IndexRule]:
    """The rule of an input; with the counts beside it, if any, for a list, which is a set."""
    if source is None or source.op is not Op.INPUT:
        return []
    names = [str(x["name"]) for x in (source, *beside) if x is not None and x.op is Op.INPUT]
    return [IndexRule(tuple(names), low, high, selection.word("unit"), bool(beside))]


class IndexRule:
    """The range of a given tensor's values, and that a list names nothing twice.

    Tensors that passed pass again at once until they are changed. ``names`` are those of the inputs to call it with.
    """

    def __init__(self, names: tuple[str, ...], low: int, high: int, unit: str, is_list: bool) -> None:
        self.names, self.low, self.high, self.unit, self.is_list = names, low, high, unit, is_list
        self._passed: tuple[tuple[weakref.ref[Tensor], int], ...] = ()

    def __call__(self, *given: Tensor) -> None:
        """Raises InputError where a value is out of range or occurs twice in a list."""
        passed = self._passed  # read once: another thread may put other tensors there
        if passed and all(r() is x and v == x._version for (r, v), x in zip(passed, given, strict=True)):
            return
        if given[0].numel():
            self._check(*given)
        fixed = not any(x.is_inference() for x in given)
        self._passed = tuple((weakref.ref(x), x._version) for x in given) if fixed else ()

    def _check(self, x: Tensor, counts: Tensor | None = None) -> None:
        facts = _facts(x, self.is_list and counts is None)
        if facts.least < self.low or facts.most > self.high:
            wrong = facts.most if facts.most > self.high else facts.least
            rule = f"values go from {self.low} to {self.high} here ({self.unit}s; -1 stands for none)"
            raise InputError(self.names[0], f"value {wrong}", rule, "clamp it, or use -1 for slots left over")
        if facts.twice or (counts is not None and bool(_twice(x, counts))):
            rule = "a list is a set: it names each once"
            raise InputError(self.names[0], f"a {self.unit} twice in a list", rule, "use -1 for slots left over")


class Facts(NamedTuple):
    """What was read of a tensor of integers: extremes, and whether a list along its last dim names a unit twice."""

    least: int
    most: int
    twice: bool


def _facts(x: Tensor, is_list: bool) -> Facts:
    """On a GPU this waits for it, so a tensor is looked at again only once changed."""
    from torch.utils.weak import WeakIdKeyDictionary

    global _SEEN
    if x.is_inference():  # nothing tells whether it was changed
        return _read(x, is_list)
    _SEEN = WeakIdKeyDictionary() if _SEEN is None else _SEEN
    version, known_list, facts = _SEEN.get(x, (-1, False, None))
    if version != x._version or (is_list and not known_list):
        facts = _read(x, is_list)
        _SEEN[x] = (x._version, is_list, facts)
    assert isinstance(facts, Facts)
    return facts


def _read(x: Tensor, is_list: bool) -> Facts:
    import torch

    found = [*torch.aminmax(x), *([_twice(x, None).to(x.dtype)] if is_list else [])]
    least, most, *twice = torch.stack(found).tolist()
    return Facts(int(least), int(most), any(twice))


def _twice(x: Tensor, counts: Tensor | None) -> Tensor:
    """Whether any list along the last dim holds a unit twice, -1 aside; slots from ``counts`` on hold nothing."""
    import torch

    if counts is not None:
        x = torch.where(torch.arange(x.shape[-1], device=x.device) < counts[..., None], x, -1)
    ordered = x.sort(-1).values
    return ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()


_SEEN: Any = None
