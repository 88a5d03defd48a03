"""Reads an expression in Python infix syntax through Python's own parser, restricted to what expressions can say."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from functools import reduce

from sparsec.scalar.composed import COMPOSED
from sparsec.scalar.expr import Expr, Kind, call, constant, element, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import NAMED

NUMBERS: dict[str, float] = {"inf": math.inf, "nan": math.nan}
BINARY: dict[type[ast.operator], Fn] = {
    ast.Add: Fn.ADD, ast.Sub: Fn.SUB, ast.Mult: Fn.MUL, ast.Div: Fn.DIV, ast.FloorDiv: Fn.FLOORDIV, ast.Mod: Fn.MOD,
    ast.BitAnd: Fn.AND, ast.BitOr: Fn.OR, ast.BitXor: Fn.XOR, ast.LShift: Fn.SHL, ast.RShift: Fn.SHR,
}  # fmt: skip
UNARY: dict[type[ast.unaryop], Fn] = {ast.USub: Fn.NEG, ast.Invert: Fn.NOT}
COMPARE: dict[type[ast.cmpop], tuple[Fn, bool]] = {  # (function, operands swapped)
    ast.Lt: (Fn.LT, False), ast.LtE: (Fn.LE, False), ast.Gt: (Fn.LT, True), ast.GtE: (Fn.LE, True),
    ast.Eq: (Fn.EQ, False), ast.NotEq: (Fn.NE, False),
}  # fmt: skip
INSTEAD: dict[type[ast.expr], str] = {
    ast.BoolOp: "write & for and, | for or, with parentheses around comparisons",
    ast.IfExp: "write where(condition, then, otherwise)",
    ast.Attribute: "name a variable, or call a function by its bare name",
    ast.Lambda: "write the body alone",
}


class ExprSyntaxError(ValueError):
    """Text that is no expression.

    Attributes:
        text: the whole text; ``column``: where in it, from 1; ``piece``: the offending part; ``rule``; ``fix``.
    """

    def __init__(self, text: str, column: int, piece: str, rule: str, fix: str) -> None:
        super().__init__(f"column {column}: `{piece}`: {rule}; {fix}\n    {text}\n    {' ' * (column - 1)}^")
        self.text, self.column, self.piece, self.rule, self.fix = text, column, piece, rule, fix


def parse(text: str, variables: Mapping[str, Kind] | None = None, tensors: Mapping[str, Kind] | None = None) -> Expr:
    """The expression of a text such as ``(j <= i) & (i - j < w[h])``; comparisons may chain.

    Args:
        variables: the kinds of the names that may occur; None: any name, a float if it is ``score`` or ``x…``.
        tensors: the kinds of the captured tensors; None: any name, of floats.

    Raises:
        ExprSyntaxError: with the column, the offending piece and a fix.
    """
    flat = text.replace("\n", " ").replace("\t", " ")
    shift = len(flat) - len(flat.lstrip())
    try:
        tree = ast.parse(flat.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = shift + (getattr(error, "offset", 0) or len(flat.strip()) + 1)
        piece = flat[column - 1 :].strip()[:20] or "end of text"
        rule = str(getattr(error, "msg", None) or error or "too deeply nested")
        raise ExprSyntaxError(flat, column, piece, rule, "write a Python expression of variables and numbers") from None
    return _Reader(flat, shift, variables, tensors).read(tree)


class _Reader:
    def __init__(
        self, text: str, shift: int, variables: Mapping[str, Kind] | None, tensors: Mapping[str, Kind] | None
    ) -> None:
        self.text, self.shift, self.variables, self.tensors = text, shift, variables, tensors
        self.rules: dict[type[ast.expr], Callable[..., Expr]] = {
            ast.Constant: self._constant, ast.Name: self._name, ast.BinOp: self._binary, ast.UnaryOp: self._unary,
            ast.Compare: self._compare, ast.Call: self._call, ast.Subscript: self._element,
        }  # fmt: skip

    def read(self, node: ast.expr) -> Expr:
        rule = self.rules.get(type(node))
        if rule is None:
            fix = INSTEAD.get(type(node), "use numbers, variables, + - * / // % & | ~ and functions")
            raise self._error(node, "not part of the language of expressions", fix)
        try:
            return rule(node)
        except TypeError as error:
            raise self._error(node, str(error), "make the operands agree") from None
        except RecursionError:
            raise self._error(node, "too deeply nested", "split it into smaller expressions") from None

    def _error(self, node: ast.expr, rule: str, fix: str) -> ExprSyntaxError:
        line = self.text.strip().encode()  # Python counts columns in UTF-8 bytes
        start, end = (len(line[:n].decode(errors="ignore")) for n in (node.col_offset, node.end_col_offset or 0))
        return ExprSyntaxError(self.text, self.shift + start + 1, self.text[self.shift :][start:end], rule, fix)

    def _constant(self, node: ast.Constant) -> Expr:
        if not isinstance(node.value, int | float):
            raise self._error(node, "not a number", "write an integer, a float, True or False")
        return constant(node.value)

    def _name(self, node: ast.Name) -> Expr:
        name = node.id
        if name in NUMBERS:
            return constant(NUMBERS[name])
        if self.variables is None:
            return var(name, "float" if name == "score" or name.startswith("x") else "int")
        if name not in self.variables:
            raise self._error(node, "unknown name", f"known here: {', '.join(self.variables) or 'none'}")
        return var(name, self.variables[name])

    def _binary(self, node: ast.BinOp) -> Expr:
        left, right = self.read(node.left), self.read(node.right)
        if isinstance(node.op, ast.Pow):
            if right.head != "const" or not isinstance(right.value, int | float):
                raise self._error(node.right, "a power is a number", "use exp2(), log2() or a product")
            return left**right.value
        if type(node.op) not in BINARY:
            raise self._error(node, "no such operator", "use + - * / // % & | ^ << >>")
        return call(BINARY[type(node.op)], left, right)

    def _unary(self, node: ast.UnaryOp) -> Expr:
        if isinstance(node.op, ast.Not):
            raise self._error(node, "`not` decides in Python", "write ~ for not")
        operand = self.read(node.operand)
        return operand if isinstance(node.op, ast.UAdd) else call(UNARY[type(node.op)], operand)

    def _compare(self, node: ast.Compare) -> Expr:
        operands = [self.read(x) for x in (node.left, *node.comparators)]
        parts = []
        for op, a, b in zip(node.ops, operands, operands[1:], strict=False):
            if type(op) not in COMPARE:
                raise self._error(node, "no such comparison", "use < <= == != >= >")
            fn, swapped = COMPARE[type(op)]
            parts.append(call(fn, b, a) if swapped else call(fn, a, b))
        return reduce(lambda x, y: x & y, parts)

    def _call(self, node: ast.Call) -> Expr:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in NAMED and name not in COMPOSED:
            known = f"exp exp2 log log2 sqrt rsqrt tanh sigmoid abs minimum maximum where {' '.join(COMPOSED)}"
            raise self._error(node.func, "unknown function", f"there are {known}")
        if node.keywords:
            raise self._error(node.keywords[0].value, "functions take no keywords", "give operands in order")
        operands = [self.read(a) for a in node.args]
        return COMPOSED[name](*operands) if name in COMPOSED else call(NAMED[name], *operands)

    def _element(self, node: ast.Subscript) -> Expr:
        if not isinstance(node.value, ast.Name):
            raise self._error(node.value, "only a captured tensor has elements", "write name[index, ...]")
        name = node.value.id
        if self.tensors is not None and name not in self.tensors:
            raise self._error(node.value, "unknown tensor", f"captured here: {', '.join(self.tensors) or 'none'}")
        index = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return element(
            name, *(self.read(k) for k in index), kind="float" if self.tensors is None else self.tensors[name]
        )
