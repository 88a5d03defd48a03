"""Reading ``.sparsec`` text piece by piece, with the line and column of every piece."""

from __future__ import annotations

import re
from typing import NamedTuple

from sparsec.ir.error import TextError
from sparsec.ir.origin import Origin
from sparsec.ir.shape import DTYPES
from sparsec.ir.suggest import did_you_mean

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_KEYWORD = re.compile(r"[A-Za-z_]\w*(?:\s|#[^\n]*)*=(?!=)")
_WORD = re.compile(r"\w+|\S")


class Token(NamedTuple):
    """A piece of text and its offset."""

    text: str
    start: int


class Scanner:
    """A cursor over a text; every error names file, line and column."""

    def __init__(self, text: str, file: str) -> None:
        self._text, self._file, self._at = text, file, 0
        self._blank()

    def at(self, text: str) -> bool:
        """Whether the next piece is ``text``."""
        return self._next().text == text

    def at_keyword(self) -> bool:
        """Whether ``name =`` follows."""
        return _KEYWORD.match(self._text, self._at) is not None

    def skip(self, text: str) -> bool:
        """Steps over ``text`` if it is next."""
        if not self.at(text):
            return False
        self._move(self._at + len(text))
        return True

    def expect(self, text: str, fix: str = "") -> None:
        """Steps over ``text``, which must be next."""
        if not self.skip(text):
            found = self._next()
            near = did_you_mean(found.text, [text]) if len(text) > 1 and found.text else ""
            raise self.error(found, f"`{text}` is expected here", fix or near or f"write `{text}`")

    def name(self, what: str) -> Token:
        """Steps over a name and gives it."""
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self.error(self._next(), f"{what} is expected here", "a name of letters, digits and _")
        token = Token(match.group(), self._at)
        self._move(match.end())
        return token

    def shape(self) -> tuple[str, Token]:
        """Steps over ``[dims] dtype`` and gives its text and place."""
        start = self._at
        self.expect("[")
        while not self.at("]"):
            self._balanced(",]")
            if not self.skip(","):
                break
        self.expect("]")
        if self._next().text in DTYPES:
            self.skip(self._next().text)
        text = self._text[start : self._at].strip()
        return re.sub(r"#[^\n]*", " ", text), Token(text, start)

    def raw(self) -> Token:
        """Steps over an attribute's value: everything to the next comma or brace outside brackets."""
        start = self._at
        self._balanced(",}")
        text = re.sub(r"#[^\n]*", lambda comment: " " * len(comment.group()), self._text[start : self._at]).rstrip()
        if not text:
            raise self.error(self._next(), "a value is expected here", "such as 64 or (j <= i)")
        return Token(text, start)

    def end(self) -> None:
        """Nothing may follow."""
        if self._at < len(self._text):
            raise self.error(self._next(), "nothing may follow the variant", "one variant per text")

    def origin(self, token: Token, name: str | None = None) -> Origin:
        """A token's place."""
        before = self._text[: token.start]
        return Origin(self._file, before.count("\n") + 1, token.start - (before.rfind("\n") + 1) + 1, name)

    def error(self, token: Token, rule: str, fix: str) -> TextError:
        """An error at a token."""
        return TextError(
            "text", f"`{token.text}`" if token.text else "the end of the text", rule, fix, self.origin(token)
        )

    def _next(self) -> Token:
        match = _WORD.match(self._text, self._at)
        return Token(match.group() if match else "", self._at)

    def _balanced(self, stops: str) -> None:
        """Moves to the first of ``stops`` outside brackets."""
        depth, at = 0, self._at
        while at < len(self._text) and (depth or self._text[at] not in stops):
            if self._text[at] == "#":
                at = _BLANK.match(self._text, at).end()  # type: ignore[union-attr]
                continue
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(self._text[at], 0)
            if depth < 0:
                break
            at += 1
        self._move(at)

    def _blank(self) -> None:
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _move(self, at: int) -> None:
        self._at = at
        self._blank()
