"""Reads printed source into a TIR function, several times faster than the general TVMScript parser.

It knows the few statements that ``emit`` prints (names, stores, ``for``, ``while``, ``if``) and runs them on TVM's
builder, so that source stays what is compiled. Whatever else a source holds is left to TVM's own parser.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from sparsec.backends.tvm.threads import load_tvm

SOMEWHERE: dict[str, Any] = {"lineno": 1, "col_offset": 0, "end_lineno": 1, "end_col_offset": 0}
"""Where statements made here stand: Python asks for a place, and its own search for one takes longest of all."""


class UnknownStatement(ValueError):
    """A statement that ``emit`` does not print."""


def read(source: str) -> Any:
    """The function of a source."""
    try:
        return _Reader().function(source)
    except UnknownStatement:
        load_tvm()
        from tvm.script import from_source

        return from_source(source, check_well_formed=False)


class _Reader:
    """Names in scope, and the builder that collects the function."""

    def __init__(self) -> None:
        load_tvm()
        from tvm.tirx.script import builder

        self.builder: Any = builder
        from tvm.script.ir_builder import IRBuilder

        self.name: Any = IRBuilder.name
        self.names: dict[str, Any] = {"T": builder, "name_": self.name, "bind_": self.bind, "store_": self.store}

    def function(self, source: str) -> Any:
        """The function that a module of one function defines."""
        from tvm.script.ir_builder import IRBuilder

        (definition,) = ast.parse(source).body
        if not isinstance(definition, ast.FunctionDef):
            raise UnknownStatement(ast.dump(definition))
        with IRBuilder() as made:
            with self.builder.prim_func(s_tir=True):
                self.builder.func_name(definition.name)
                for argument in definition.args.args:
                    assert argument.annotation is not None, argument.arg
                    kind = self.value(argument.annotation)
                    self.names[argument.arg] = self.builder.arg(argument.arg, kind())
                self.block(definition.body)
            return made.get()

    def value(self, expression: ast.expr) -> Any:
        """An expression of TVM values."""
        return eval(compile(ast.Expression(expression), "<kernel>", "eval"), self.names)

    def bind(self, name: str, value: Any) -> Any:
        """A name for a value, evaluated here."""
        from tvm.tirx import const

        return self.name(name, self.builder.Bind(const(value) if isinstance(value, int | float) else value))

    def store(self, buffer: Any, index: Any, value: Any) -> None:
        """Write to a buffer."""
        self.builder.buffer_store(buffer, value, [index])

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Statements in order; runs of plain ones at once."""
        plain: list[ast.stmt] = []
        for statement in statements:
            if isinstance(statement, ast.For | ast.While | ast.If):
                self.run(plain)
                plain = []
                self.control(statement)
            else:
                plain.append(_plain(statement))
        self.run(plain)

    def run(self, statements: list[ast.stmt]) -> None:
        """Plain statements, as Python."""
        if statements:
            exec(compile(ast.Module(statements, []), "<kernel>", "exec"), self.names)

    def control(self, statement: ast.For | ast.While | ast.If) -> None:
        """A loop or a branch, with its body."""
        if isinstance(statement, ast.For):
            if not isinstance(statement.target, ast.Name) or not isinstance(statement.iter, ast.Call):
                raise UnknownStatement(ast.dump(statement))
            with self.loop(statement.iter) as index:
                self.names[statement.target.id] = self.name(statement.target.id, index)
                self.block(statement.body)
        elif isinstance(statement, ast.While):
            with self.builder.While(self.value(statement.test)):
                self.block(statement.body)
        else:
            self.branch(statement)

    def loop(self, call: ast.Call) -> Any:
        """The frame of ``range`` or of one of T's loops."""
        if isinstance(call.func, ast.Name) and call.func.id == "range":
            return self.builder.serial(*(self.value(a) for a in call.args))
        return self.value(call)

    def branch(self, statement: ast.If) -> None:
        """``if``, with or without ``else``."""
        with ExitStack() as stack:
            stack.enter_context(self.builder.If(self.value(statement.test)))
            with self.builder.Then():
                self.block(statement.body)
            if statement.orelse:
                with self.builder.Else():
                    self.block(statement.orelse)


def _plain(statement: ast.stmt) -> ast.stmt:
    """The statement as Python that calls the builder."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        return _assign(statement.target, "bind_", statement.value)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return _assign(statement.targets[0], "name_", statement.value)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
        target = statement.targets[0]
        name = ast.Name(_name(target), ast.Load(), **SOMEWHERE)
        return ast.Expr(_call("store_", name, target.slice, statement.value), **SOMEWHERE)
    if isinstance(statement, ast.Expr | ast.Pass):
        return statement
    raise UnknownStatement(ast.dump(statement))


def _name(target: ast.Subscript) -> str:
    assert isinstance(target.value, ast.Name)
    return target.value.id


def _assign(target: ast.Name, function: str, value: ast.expr) -> ast.Assign:
    call = _call(function, ast.Constant(target.id, **SOMEWHERE), value)
    return ast.Assign([target], call, **SOMEWHERE)


def _call(function: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(function, ast.Load(), **SOMEWHERE), list(arguments), [], **SOMEWHERE)
