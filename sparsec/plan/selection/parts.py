"""Specs of choices of which less is asked than of the choice they come from."""

from __future__ import annotations

from dataclasses import replace

from sparsec.plan.specs import Selector


def ids_alone(spec: Selector) -> Selector:
    """The same choice, of which only the ids are kept."""
    return replace(spec, weights=None, weights_out=None, hard_out=None, scores_out=None)


def scores_alone(spec: Selector) -> Selector:
    """Its scores before a bias, whatever is chosen by them."""
    return replace(ids_alone(spec), bias=None, captures=())
