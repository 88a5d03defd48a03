"""``.sparsec`` text -> variant. One statement per node; what the printer writes parses back to the same nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparsec.frontends.scan import Scanner, Token
from sparsec.ir import build
from sparsec.ir.error import DeclarationError, TextError
from sparsec.ir.make import make
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import Origin, stated
from sparsec.ir.schema import SCHEMA, Attr
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant, variant

OPS = {op.value: op for op in Op if op is not Op.INPUT}


def parse(text: str, file: str = "<text>") -> Variant:
    """The variant that a text declares.

    Raises:
        DeclarationError: with line, column, the offending value and a fix; ``TextError`` where the text does not parse.
    """
    return _Parser(text, file).file()


def load(path: str | Path) -> Variant:
    """The variant that a ``.sparsec`` file declares; errors are those of ``parse``, or ``OSError``."""
    if Path(path).suffix == ".py":
        rule = "load reads .sparsec text; Python declares its variants where it is run"
        raise DeclarationError(f"file {path}", "a Python file", rule, "import it, and take the variant from the module")
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is {content[error.start]:#04x}"
        raise DeclarationError(f"file {path}", where, "a declaration is UTF-8 text", "save it as UTF-8") from error
    return parse(text, str(path))


class _Parser:
    """Recursive descent over a scanner; ``known`` maps the names that statements have given so far."""

    def __init__(self, text: str, file: str) -> None:
        self.scan = Scanner(text, file)
        self.known: dict[str, Node] = {}

    def file(self) -> Variant:
        self.scan.expect("variant", fix="begin with `variant name(q: [B, TQ, H, D], …) {`")
        name = self.scan.name("the variant's name")
        parameters = self._parameters()
        self.scan.expect("{")
        while not self.scan.at("return"):
            self._statement()
        self.scan.expect("return")
        outputs = [self._source()]
        while self.scan.skip(","):
            outputs.append(self._source())
        self.scan.expect("}")
        self.scan.end()
        with stated(self.scan.origin(name)):
            return variant(name.text, outputs, parameters)

    def _parameters(self) -> list[Node]:
        self.scan.expect("(")
        found: list[Node] = []
        while not self.scan.at(")"):
            name = self.scan.name("an input's name")
            self.scan.expect(":")
            shape, column = self.scan.shape()
            with stated(self.scan.origin(column, name.text)):
                node = build.input(name.text, shape)
            self._define(name, node)
            found.append(node)
            if not self.scan.skip(","):
                break
        self.scan.expect(")")
        return found

    def _statement(self) -> None:
        name = self.scan.name("a statement, or return")
        self.scan.expect("=")
        self._define(name, self._call(self.scan.name("an op"), name.text))

    def _define(self, name: Token, node: Node) -> None:
        if name.text in self.known:
            raise self.scan.error(name, "each name is given once", f"{name.text}_2 = …")
        self.known[name.text] = node

    def _source(self) -> Node:
        name = self.scan.name("a source")
        if self.scan.at("("):
            return self._call(name, None)
        if name.text not in self.known:
            raise self.scan.error(name, "no statement or input has this name", did_you_mean(name.text, self.known))
        return self.known[name.text]

    def _call(self, op: Token, name: str | None) -> Node:
        if op.text not in OPS:
            raise self.scan.error(op, "there is no such op", did_you_mean(op.text, OPS))
        sources, named = self._sources()
        places, values = self._attributes(SCHEMA[OPS[op.text]].attrs)
        try:
            with stated(self.scan.origin(op, name)):
                return make(OPS[op.text], sources, named, **values)
        except DeclarationError as error:
            at = places.get(error.value.split(" = ")[0], op)
            at = Token(at.text, at.start + error.offset)
            raise _moved(error, self.scan.origin(at, name)) from error

    def _sources(self) -> tuple[list[Node], dict[str, Node]]:
        self.scan.expect("(")
        sources: list[Node] = []
        named: dict[str, Node] = {}
        while not self.scan.at(")"):
            if self.scan.at_keyword():
                key = self.scan.name("a source's name")
                self.scan.expect("=")
                named[key.text] = self._source()
            else:
                sources.append(self._source())
            if not self.scan.skip(","):
                break
        self.scan.expect(")")
        return sources, named

    def _attributes(self, known: Mapping[str, Attr]) -> tuple[dict[str, Token], dict[str, object]]:
        places: dict[str, Token] = {}
        values: dict[str, object] = {}
        if not self.scan.skip("{"):
            return places, values
        while not self.scan.at("}"):
            key = self.scan.name("an attribute")
            self.scan.expect("=")
            if key.text not in known:
                raise self.scan.error(key, "there is no such attribute here", did_you_mean(key.text, known))
            if key.text in values:
                raise self.scan.error(key, "each attribute is given once", "drop one")
            places[key.text] = self.scan.raw()
            values[key.text] = self._value(known[key.text], places[key.text])
            if not self.scan.skip(","):
                break
        self.scan.expect("}")
        return places, values

    def _value(self, attr: Attr, token: Token) -> object:
        text = token.text
        if text == "none" and attr.optional:
            return None
        if attr.form == "flag":
            return {"true": True, "false": False}.get(text, text)
        if attr.form in ("int", "float"):
            return self._literal(token)
        return text

    def _literal(self, token: Token) -> object:
        from sparsec.scalar.text import ExprSyntaxError
        from sparsec.scalar.text import parse as parse_expression

        try:
            return parse_expression(token.text)
        except ExprSyntaxError as error:
            at = Token(error.piece, token.start + error.column - 1)
            raise self.scan.error(at, error.rule, error.fix) from error


def _moved(error: DeclarationError, origin: Origin) -> DeclarationError:
    """The same error at a more exact place."""
    kind = TextError if isinstance(error, TextError) else DeclarationError
    return kind(error.node, error.value, error.rule, error.fix, origin)
