"""Rewriting: rules as data, applied from the sources up until none applies. Iterative, so depth is no limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.ir.make import remake
from sparsec.ir.node import Node, topological
from sparsec.ir.origin import written_as

Rule = Callable[[Node], Node | None]
LIMIT = 100


class RewriteError(AssertionError):
    """Rules that undo each other."""


def rewrite(roots: Sequence[Node], rules: Sequence[Rule]) -> tuple[Node, ...]:
    """The roots with every rule applied everywhere; a rule gives the replacement of a node, or None.

    A graph that no rule changes comes back as the same nodes.
    """
    done: dict[Node, Node] = {}
    for node in topological(roots):
        sources = tuple(done[source] for source in node.src)
        with written_as(node):
            rebuilt = node if sources == node.src else remake(node, sources)
            done[node] = _settle(rebuilt, rules)
    return tuple(done[root] for root in roots)


def _settle(node: Node, rules: Sequence[Rule]) -> Node:
    """Applies rules at one node until none fires; sources that a rule brings in are left to another rewrite."""
    for _ in range(LIMIT):
        replacement = next((new for rule in rules if (new := rule(node)) is not None and new is not node), None)
        if replacement is None:
            return node
        node = replacement
    names = ", ".join(getattr(rule, "__name__", str(rule)) for rule in rules)
    raise RewriteError(f"rules {names} never settle at {node}")
