"""Which way a call goes: straight to the kernels, through autograd, or through the operator that tracing can see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparsec.ir.error import InputError
from sparsec.runtime import bind

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled

PLAIN = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer})
"""The classes of tensors that hold nothing but data; others (fake, functional, wrapped) go through the operator."""

_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack
_casting = torch._C._is_any_autocast_enabled
_gradients = torch.is_grad_enabled
compiling = torch.compiler.is_compiling
deterministic = torch.get_deterministic_debug_mode  # 0: not asked for; 1: torch warns; 2: it refuses


def traced(tensors: Sequence[Tensor]) -> bool:
    """Whether somebody records or transforms this call instead of merely making it."""
    if compiling() or _modes() or _transform() is not None:
        return True
    return not PLAIN.issuperset([x.__class__ for x in tensors])


def differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether this call has to remember what its gradients need."""
    if _gradients():
        for x in tensors:
            if x.requires_grad:
                return True
    return False


def refuse_tangents(inputs: Mapping[str, Any]) -> None:
    """Raises InputError for an input with a tangent: kernels would drop it, and its derivatives would be zero."""
    if forward_ad._current_level < 0:  # no torch.func.jvp and no dual level
        return
    for name, x in inputs.items():
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            rule = "forward-mode derivatives have no kernels"
            raise InputError(name, "has a tangent", rule, "take gradients by torch.autograd, or detach it")


def refuse_transforms(variant: str) -> None:
    """Raises InputError where torch.func differentiates: its transforms see no saved tensors."""
    if _transform() is not None:
        rule = "gradients are taken by torch.autograd alone"
        fix = "loss.backward() or torch.autograd.grad(loss, inputs) in place of torch.func.grad, vjp and jacrev"
        raise InputError(variant, "inside a transform of torch.func that differentiates", rule, fix, "layer")


def autocast(tensors: Sequence[Tensor], floats: Sequence[bool]) -> Sequence[Tensor]:
    """The tensors in the dtype of the autocast that is on for their device, where the declaration says "float"."""
    if not (compiling() or _casting()) or not tensors:
        return tensors
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if cast else x for x, cast in zip(tensors, floats, strict=True)]


def packed(compiled: Compiled, tensors: Sequence[Tensor], given: Sequence[Any]) -> Tensor | tuple[Tensor, ...]:
    """A packed call; ``given`` as in ``Given``. Under tracing its operator, with all rows for lengths not given."""
    from sparsec.runtime.packed.documents import Given

    if not traced(tensors):
        return compiled.packed(tensors, Given(*given))
    bind.check_names(compiled.variant, dict(zip(compiled.names, tensors, strict=True)))
    cu, cu_k, most_q, most_k, offset = given
    queries, keys = compiled.packed_rows
    most_q = tensors[queries].shape[0] if most_q is None else most_q
    most_k = most_q if most_k is None and cu_k is None else tensors[keys].shape[0] if most_k is None else most_k
    offsets = (offset, None) if isinstance(offset, Tensor) else (None, offset)
    found = compiled.packed_operator(list(tensors), cu, cu_k, most_q, most_k, *offsets)
    return found[0] if len(found) == 1 else tuple(found)
