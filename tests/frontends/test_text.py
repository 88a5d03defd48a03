"""Text front end: what is printed parses back to the same nodes; what is wrong is shown with its place and a fix."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparsec
from sparsec.frontends.text import load, parse
from sparsec.ir import build as lang
from sparsec.ir import build_state as states
from sparsec.ir.error import DeclarationError, TextError
from sparsec.ir.variant import variant

LOCAL = """
# a window
variant local(q: [B, TQ, H, D],   # queries
              k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {
  pages = tokens(k, v) {chunk = 8 * 8}
  near  = mask(pages) {where = (j <= i)
                             & (i - j < 512)  # tokens
                      }
  return attend(q, pages, near) {sink = zero,}
}
"""


def test_reads_what_the_constructors_build() -> None:
    q, k, v = lang.input("q", "B TQ H D"), lang.input("k", "B TK HKV D"), lang.input("v", "B TK HKV DV")
    pages = lang.tokens(k, v, chunk=64)
    near = lang.mask(pages, where=lambda i, j: (j <= i) & (i - j < 512))
    assert parse(LOCAL) == variant("local", lang.attend(q, pages, near, sink="zero"))


def test_names_of_the_text_are_kept() -> None:
    assert set(parse(LOCAL).names.values()) == {"q", "k", "v", "pages", "near", "out"}


def test_operands_and_captures_are_named_sources() -> None:
    text = LOCAL.replace("H, D],   #", "H, D], slope: [H] float32, w: [H], s: [H], #").replace(
        "attend(q, pages, near) {sink = zero,}",
        "attend(q, pages, near, sink=s, slope=slope, w=w) {bias = score - slope[h] * w[h] * (i - j), sink = given}",
    )
    out = parse(text).outputs[0]
    assert list(out.operands) == ["sink"]
    assert list(out.captures) == ["slope", "w"]
    assert parse(parse(text).text()) == parse(text)


def test_state_ops_round_trip() -> None:
    k, v, beta = lang.input("k", "B T HKV D"), lang.input("v", "B T HKV DV"), lang.input("beta", "B T HKV")
    route = lang.topk(lang.score(lang.input("x", "B T 1 DM"), lang.input("w", "4 1 DM"), fn="router"), k=1,
                      unit="part", scope="token")  # fmt: skip
    first = states.write(states.state(), k, v, rule="delta", beta=beta, decay=lang.input("g", "B T HKV D"))
    rest = states.residual(v, first, k, clip=1.0, gamma=beta)
    second = states.write(states.state(parts=4), k, rest, rule="delta", beta=beta, route=route, reads="undecayed")
    out = states.recall(lang.input("q", "B T H D"), first, second, mode="state_softmax", top=2)
    balance = states.aux(route.src[0], route, fn="balance", coefficient=0.01)
    done = variant("levels", [out, balance])
    assert parse(done.text()) == done
    assert "return out, balance" in done.text()


@pytest.mark.parametrize(
    ("name", "written"),
    [("complete_past", "16 * c + 16 <= i"), ("started", "16 * c <= i"), ("complete", "16 * c + 15 <= i")],
)
def test_predicates_have_names(name: str, written: str) -> None:
    text = """variant chosen(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]) {
      memory = tokens(k, v) {chunk = 16}
      marks = summary(memory) {size = 16, stride = 16}
      return attend(q, memory, topk(score(q, marks)) {k = 2, size = 16, scope = head, eligible = ELIGIBLE})
    }"""
    assert parse(text.replace("ELIGIBLE", name)) == parse(text.replace("ELIGIBLE", written))


def test_several_outputs() -> None:
    two = parse(LOCAL.replace("return attend", "o = attend").replace("zero,}", "none}\n return o, lse(o)"))
    assert [node.op.value for node in two.outputs] == ["attend", "lse"]
    assert parse(two.text()) == two


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "local.sparsec"
    path.write_text(LOCAL)
    assert load(path) == parse(LOCAL)
    path.write_text(LOCAL.replace("near)", "nearer)"))
    with pytest.raises(TextError, match=r"local.sparsec:9:27: .*`nearer`.*did you mean `near`\?"):
        load(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.sparsec").write_bytes(b"variant \xff")
    with pytest.raises(DeclarationError, match=r"x\.sparsec: byte 8 is 0xff: a declaration is UTF-8 text"):
        load(tmp_path / "x.sparsec")
    with pytest.raises(DeclarationError, match=r"a Python file.*import it"):
        load(tmp_path / "x.py")


PREDICATE = LOCAL[LOCAL.index("{where") : LOCAL.index("\n  return")]
ERRORS = {
    "an unknown op": ("tokens(k", "token(k", "5:11", "`token`", "did you mean `tokens`?"),
    "an unknown attribute": ("{where", "{were", "6:24", "`were`", "did you mean `where`?"),
    "an unknown choice": ("sink = zero", "sink = zeros", "9:41", "sink = zeros", "did you mean `zero`?"),
    "an unknown source": ("attend(q,", "attend(p,", "9:17", "`p`", "choose one of"),
    "an unknown input kind": ("v: [B", "v: <B", "4:38", "`<`", "write `[`"),
    "a broken expression": ("512)", "< 512)", "7:41", "where = < 512)", "expression"),
    "an index that means nothing": ("512)", "c)", "6:32", "where = ", "it may use b, h, i, j and dims"),
    "a dim that is none": ("512)", "TKK)", "6:11", "where = ", "did you mean `TK`?"),
    "a bad number": ("8 * 8", "8 * TQ", "5:33", "chunk = ", "1 or more"),
    "a number below its least": ("8 * 8", "0", "5:33", "chunk = 0", "1 or more"),
    "a missing brace": ("zero,}", "zero", "11:1", "the end of the text", "write `}`"),
    "a missing return": ("return attend", "attend", "9:9", "`(`", "write `=`"),
    "a name twice": ("near  =", "pages =", "6:3", "`pages`", "pages_2 = …"),
    "an attribute twice": ("zero,}", "zero, sink = none}", "9:47", "`sink`", "drop one"),
    "text after the end": ("zero,}\n}", "zero,}\n} more", "10:3", "`more`", "one variant per text"),
    "text that stops": ("zero,}\n}", "zero,}", "10:1", "the end of the text", "write `}`"),
    "no variant": ("variant local", "local", "3:1", "`local`", "begin with `variant name"),
    "an unused input": ("v: [B, TK, HKV, DV])", "v: [B, TK, HKV, DV], z: [B])", "4:59", "never used", "drop it"),
    "a source that is no list": ("pages, near)", "pages, q)", "9:10", "a tensor (input)", "order of the sources"),
    "an unknown operand": ("tokens(k, v)", "tokens(k, v, w=q)", "5:11", "w", "leave it out"),
    "a missing attribute": (PREDICATE, "", "6:11", "no where", "where = "),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_a_place_and_a_fix(name: str) -> None:
    old, new, place, value, fix = ERRORS[name]
    assert LOCAL.count(old) == 1
    with pytest.raises(DeclarationError) as caught:
        parse(LOCAL.replace(old, new), "a.sparsec")
    error = caught.value
    said = str(error)
    assert value in error.value, said
    assert fix in error.fix, said
    assert str(error.origin) == f"a.sparsec:{place}", said


def test_parse_is_public() -> None:
    assert sparsec.parse(LOCAL) == parse(LOCAL)


def test_a_decay_without_its_kind_is_told_the_kinds() -> None:
    """Texts say which kind it is; the fix says what to write."""
    text = "variant x(k: [B,T,H,D], v: [B,T,H,DV], g: [B,T,H]) { return write(state() {heads = H}, k, v, decay = g) }"
    with pytest.raises(DeclarationError, match="Fix: decay_kind = scalar, key or value, or drop decay="):
        parse(text)
