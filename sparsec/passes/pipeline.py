"""The compiler's passes as one list, and the runner that verifies and watches each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.ir.origin import written_again
from sparsec.ir.variant import Variant
from sparsec.ir.verify import verify
from sparsec.passes.canonicalise import canonicalise
from sparsec.passes.differentiate import Differentiated, differentiate
from sparsec.passes.expand_readout import expand_readout
from sparsec.passes.expand_residual import expand_residual
from sparsec.passes.expand_slots import expand_slots
from sparsec.passes.fuse_maps import fuse_maps
from sparsec.passes.name_captures import name_captures
from sparsec.passes.selections import normalise_selections
from sparsec.passes.shared_lists import shared_lists_to_masks
from sparsec.passes.simplify import simplify

Pass = Callable[[Variant], Variant]
"""A variant in, an equal variant out; the same object where there is nothing to do. Its name is the function's."""

Observer = Callable[[str, Variant, Variant], None]
"""Told of each pass after it was verified: its name, the variant before, the variant after."""

PIPELINE: tuple[Pass, ...] = (
    expand_residual,  # first, since what it leaves are recalls and maps like any others
    expand_readout,  # as the residuals
    expand_slots,  # as the residuals
    fuse_maps,  # before canonicalise, so that a gate is one function of what it is made of
    name_captures,  # before masks are joined, which takes a name for each tensor
    canonicalise,  # early, so that later passes and matchers see flat merges and at most one mask per attend
    shared_lists_to_masks,  # before simplify, which joins masks and removes open ones
    simplify,  # before selections are settled: a list that chooses everything becomes a mask
    normalise_selections,  # last, when it is known which lists are left and who reads their order
)


def run(variant: Variant, passes: Sequence[Pass] = PIPELINE, observers: Sequence[Observer] = ()) -> Variant:
    """The variant after each pass in turn; the graph is verified after each one.

    Raises:
        VerifyError: a pass left a graph that breaks a rule; the message names the pass, the node and the rule.
    """
    written_again(variant.origins)
    for step in passes:
        before, variant = variant, step(variant)
        verify(variant.outputs, f"after {step.__name__}")
        assert variant.parameters == before.parameters, f"{step.__name__} changed the inputs of {before.name}"
        for observe in observers:
            observe(step.__name__, before, variant)
    return variant


def training(variant: Variant, wrt: Sequence[str] | None = None, observers: Sequence[Observer] = ()) -> Differentiated:
    """The pipeline, then ``differentiate``: the verified joint variant of outputs and gradients.

    Raises:
        InputError: ``wrt`` names no input, or an integer one.
        DeclarationError: something on the way has no gradient yet.
    """
    before = run(variant, PIPELINE, observers)
    written_again(before.origins)
    joint = differentiate(before, wrt)
    verify(joint.variant.outputs, f"after {differentiate.__name__}")
    for observe in observers:
        observe(differentiate.__name__, before, joint.variant)
    return joint
