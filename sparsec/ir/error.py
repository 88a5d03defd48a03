"""The error of a declaration that breaks a rule."""

from __future__ import annotations

from sparsec.ir.origin import Origin


class DeclarationError(ValueError):
    """A declaration that breaks a rule: names the node, its source line, the value, the rule and a fix.

    Attributes:
        node: what was being declared, such as ``topk chosen`` or ``input q``.
        value: the offending piece as text.
        rule: what must hold.
        fix: what to write instead.
        origin: where it was written, if known.
        offset: characters from the start of an attribute's value to the offending piece.
    """

    def __init__(
        self, node: str, value: str, rule: str, fix: str, origin: Origin | None = None, offset: int = 0
    ) -> None:
        self.node, self.value, self.rule, self.fix, self.origin, self.offset = node, value, rule, fix, origin, offset
        where = f"{origin}: " if origin else ""
        super().__init__(f"{where}{node}: {value}: {rule}. Fix: {fix}")


class TextError(DeclarationError):
    """A ``.sparsec`` text that does not parse; ``origin`` has its line and column."""


class InputError(ValueError):
    """Actual tensors that do not fit a declaration: names the input (or ``what`` it is), the value, the rule, a fix."""

    def __init__(self, name: str, value: str, rule: str, fix: str, what: str = "input") -> None:
        self.name, self.value, self.rule, self.fix = name, value, rule, fix
        super().__init__(f"{what} {name}: {value}: {rule}. Fix: {fix}")
