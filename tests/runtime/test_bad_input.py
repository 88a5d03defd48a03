"""Bad input gets a typed error that names node, line, value, rule and fix, before anything is written or launched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec import lang
from sparsec.ir.error import DeclarationError, InputError, TextError
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.runtime.compiled import compile
from sparsec.runtime.target import TargetError
from sparsec.testing.inputs.declared import DECLARED

HERE = Path(__file__).name
QKV = "q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]"


def text(body: str, inputs: str = QKV) -> Callable[[], object]:
    """A declaration as text; its first statement is on line 2."""
    return lambda: sparsec.parse(f"variant x({inputs}) {{\n{body}\n  return o\n}}", "x.sparsec")


def python(heads: int, kv_heads: int) -> object:
    """A declaration in Python with fixed heads."""
    q, k = lang.input("q", ("B", "TQ", heads, "D")), lang.input("k", ("B", "TK", kv_heads, "D"))
    return lang.attend(q, lang.tokens(k, k))


def computed(variant: Variant, given: dict[str, Tensor]) -> Tensor:
    """The output of generated kernels, run by the tile interpreter."""
    found = compile(variant, "interpreter")(None, **given)
    assert isinstance(found, Tensor)
    return found


def exact(variant: Variant, given: dict[str, Tensor]) -> Tensor:
    """The output of the oracle."""
    found = oracle(variant, given, form="vector")
    assert isinstance(found, Tensor)
    return found


# what is asked for -> place, node, value, and a piece of the rule and of the fix
DECLARATIONS: dict[str, tuple[Callable[[], object], str, str, str, str, str]] = {
    "unknown preset": (lambda: sparsec.preset("hsaa"), HERE, "preset", "hsaa", "no such preset", "hsa"),
    "unknown knob": (lambda: sparsec.preset("hsa", chnk=8), HERE, "preset hsa", "chnk", "no such knob", "chunk"),
    "wrong kind of knob": (lambda: sparsec.preset("hsa", k="8"), HERE, "preset hsa", "k = '8'", "type int", "8"),
    "k = 0": (lambda: sparsec.preset("hsa", k=0), HERE, "topk", "k = 0", "at least 1", "1 or more"),
    "k = 0 in text": (
        text("  o = topk(score(q, tokens(k, v))) {k = 0, unit = token}"),
        "x.sparsec:2", "topk", "k = 0", "at least 1", "1 or more",
    ),
    "k beyond fixed blocks": (
        text("  o = topk(score(q, r)) {k = 9, size = 4, scope = head}", f"{QKV}, r: [8,HKV,D]"),
        "x.sparsec:2", "topk", "k = 9", "only 8", "k = 8",
    ),
    "k beyond fixed slots": (
        text("  m = slots(k, v)\n  o = topk(score(q, m)) {k = 5, unit = token, scope = head}",
             "q: [B,TQ,H,D], k: [4,HKV,D], v: [4,HKV,DV]"),
        "x.sparsec:3", "topk", "k = 5", "only 4", "k = 4",
    ),
    "heads that do not divide": (lambda: python(6, 4), HERE, "attend", "H = 6, HKV = 4", "divisible", "evenly"),
    "block and stride": (
        lambda: sparsec.preset("nsa", block=60, stride=16), HERE, "reduce", "block = 60", "divisible", "block = 64",
    ),
    "unknown op": (text("  o = atend(q)"), "x.sparsec:2:7", "text", "`atend`", "no such op", "attend"),
    "unknown name": (text("  o = attend(q, mem)"), "x.sparsec:2:17", "text", "`mem`", "has this name", ""),
    "missing bracket": (text("  o = tokens(k, v"), "x.sparsec:3", "text", "return", "expected", ""),
    "unknown attribute": (text("  o = tokens(k, v) {chunks = 4}"), "x.sparsec:2", "text", "`chunks`", "", "chunk"),
    "bad expression": (
        text("  m = tokens(k, v)\n  o = attend(q, m, mask(m) {where = j <= })"),
        "x.sparsec:3", "", "", "", "",
    ),
    "a number for a predicate": (
        text("  m = tokens(k, v)\n  o = attend(q, m, mask(m) {where = i - j})"),
        "x.sparsec:3", "mask", "i - j", "true or false", "compare",
    ),
    "head dims that differ": (
        text("  o = attend(q, tokens(k, v))", "q: [B,TQ,H,64], k: [B,TK,HKV,32], v: [B,TK,HKV,DV]"),
        "x.sparsec:2", "attend", "64 and 32", "one head dim", "",
    ),
    "a dim without an input": (
        text("  m = tokens(k, v)\n  o = attend(q, m, mask(m) {where = j < W})"),
        "x.sparsec:3", "mask", "W", "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLARATIONS)
def test_declarations(case: str) -> None:
    make, place, node, value, rule, fix = DECLARATIONS[case]
    with pytest.raises(DeclarationError) as caught:
        make()
    error = caught.value
    assert place in str(error.origin) and str(error).startswith(str(error.origin))
    assert node in error.node and value in f"{error.value} {error.rule}" and rule in error.rule and fix in error.fix
    assert all(part in str(error) for part in (error.node, error.value, error.rule, error.fix)) and error.fix


def test_text_that_does_not_parse_says_where() -> None:
    with pytest.raises(TextError, match=r"x\.sparsec:2:7: .*did you mean `attend`"):
        text("  o = atend(q)")()


def call(**changes: object) -> Callable[[], object]:
    """A call of a compiled window with some inputs replaced, or left out where None."""

    def run() -> object:
        variant = sparsec.preset("streaming", window=4)
        given = {**sparsec.inputs(variant, T=9, H=4, HKV=2, D=16, DV=16)}
        for name, change in changes.items():
            if change is None:
                del given[name]
            else:
                given[name] = change(given[name]) if callable(change) else change  # type: ignore[assignment]
        return compile(variant, "interpreter")(None, **given)

    return run


def indexed(indices: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """A call with given indices changed."""

    def run() -> object:
        variant = sparsec.preset("nsa", block=4, k=2, selection="given", branches="slc")
        given = sparsec.inputs(variant, T=9, H=4, HKV=2, D=16, DV=16)
        return compile(variant, "interpreter")(None, **{**given, "indices": indices(given["indices"])})

    return run


def counted(ids: list[int], many: int) -> Callable[[], object]:
    """A call with one list of so many chunks for all queries."""

    def run() -> object:
        variant = sparsec.parse(DECLARED["counted"])
        sizes = {"T": 23, "H": 2, "HKV": 1, "D": 16, "DV": 16}
        given = sparsec.inputs(variant, dtype="float32", device="cpu", seed=0, **sizes)
        given["ids"] = torch.tensor(ids, dtype=torch.int32).expand_as(given["ids"]).contiguous()
        given["many"] = torch.full_like(given["many"], many)
        found = compile(variant, "interpreter")(None, **given)
        torch.testing.assert_close(found.double(), exact(variant, given), rtol=1e-5, atol=1e-6)  # type: ignore
        return found

    return run


def test_a_list_holds_nothing_behind_its_count() -> None:
    counted([0, 2, 1, 1, 1], 3)()


CALLS: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "missing": (call(k=None), "k", "missing", "k="),
    "unknown": (call(z=torch.zeros(1)), "z", "", ""),
    "no tensor": (call(k=3), "k", "int", "tensor"),
    "lengths that disagree": (call(k=lambda k: k[:, :5]), "v", "TK is 5 in `k` and 9 in `v`", "TK"),
    "rank": (call(q=lambda q: q[0]), "q", "shape (9, 4, 16)", "4 dims"),
    "heads": (call(q=lambda q: q[:, :, :3]), "attend", "H = 3, HKV = 2", "evenly"),
    "dtypes that disagree": (call(k=lambda k: k.half()), "k", "float16", "convert"),
    "a dtype without kernels": (call(k=lambda k: k.double()), "k", "float64", "convert"),
    "devices that disagree": (call(k=lambda k: k.to("meta")), "k", "meta", ".to("),
    "a last stride that is not 1": (call(k=lambda k: k.mT.contiguous().mT), "k", "stride 2", ".contiguous()"),
    "index beyond the blocks": (indexed(lambda x: x + 2), "indices", "", ""),
    "index below -1": (indexed(lambda x: x - 3), "indices", "", ""),
    "index twice": (indexed(lambda x: x.clamp(min=0, max=0)), "indices", "a chunk twice in a list", "-1"),
    "index twice within its count": (counted([0, 2, 1, 1, -1], 4), "ids", "a chunk twice in a list", "-1"),
    "count beyond the slots": (counted([0, 2, 1, -1, -1], 6), "many", "value 6", ""),
    "index dtype": (indexed(lambda x: x.long()), "indices", "int64", "int32"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str) -> None:
    run, name, said, fix = CALLS[case]
    with pytest.raises(InputError) as caught:
        run()
    error = caught.value
    assert name in error.name and said in f"{error.value}: {error.rule}" and fix in error.fix and error.fix
    assert all(part in str(error) for part in (error.name, error.value, error.rule, error.fix))


def test_targets() -> None:
    variant = sparsec.preset("streaming", window=4)
    with pytest.raises(TargetError, match=r"'triton:sm_12' is unknown; use one of .*triton:sm_90"):
        compile(variant, "triton:sm_12")
    given = sparsec.inputs(variant, T=9, H=4, HKV=2, D=16, DV=16)
    if not torch.cuda.is_available():
        with pytest.raises(TargetError, match=r"triton:sm_90 cannot run here: .* best target is tvm:llvm"):
            compile(variant, "triton:sm_90")(None, **given)
        with pytest.raises(TargetError, match=r"torch sees no GPU here; use 'cpu'"):
            compile(variant, "cuda")


def test_refused_calls_write_nothing(tmp_path: Path) -> None:
    variant = sparsec.preset("streaming", window=4)
    given = sparsec.inputs(variant, T=9, H=4, HKV=2, D=16, DV=16)
    compiled = compile(variant, "cpu", tmp_path / "cache")
    with pytest.raises(InputError):
        compiled(None, **{**given, "k": given["k"][:, :5]})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_folder_that_cannot_be_written_still_computes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    variant = sparsec.preset("streaming", window=4)
    given = sparsec.inputs(variant, T=9, H=4, HKV=2, D=16, DV=16)
    with pytest.warns(UserWarning, match="cannot be written"):
        compiled = compile(variant, "cpu", tmp_path / "file" / "cache")
    found = compiled(None, **given)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found.double(), exact(variant, given), rtol=1e-5, atol=1e-6)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_goes_where_the_oracle_says(name: str) -> None:
    """A NaN in v may also reach queries that do not see its key but read its tile: 0 * NaN is NaN in a dot."""
    variant = sparsec.preset("streaming", window=4, sinks=1)
    given = sparsec.inputs(variant, T=150, H=2, HKV=1, D=16, DV=16)
    given[name][0, 70, 0, 3] = torch.nan
    found, truth = computed(variant, given), exact(variant, given)
    assert bool(truth.isnan().any()) and bool(found.isnan()[truth.isnan()].all())
    stray = (found.isnan() & ~truth.isnan()).nonzero()
    assert stray.numel() == 0 if name != "v" else set(stray[:, 3].tolist()) == {3} and int(stray[:, 1].min()) >= 64


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 11])
def test_more_chunks_asked_for_than_exist_is_legal(tokens: int) -> None:
    variant = sparsec.preset("hsa", chunk=4, k=6, weights="softmax")
    given = sparsec.inputs(variant, T=tokens, H=2, HKV=1, D=16, DV=16, DR=16)
    torch.testing.assert_close(computed(variant, given).double(), exact(variant, given), rtol=1e-4, atol=1e-5)


def test_broadcast_inputs_are_legal() -> None:
    variant = sparsec.preset("streaming", window=4)
    given = sparsec.inputs(variant, B=2, T=9, H=4, HKV=2, D=16, DV=16)
    given["k"] = given["k"][:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(computed(variant, given).double(), exact(variant, given), rtol=1e-5, atol=1e-6)


def test_inputs_without_names_are_refused() -> None:
    """As other libraries call them, q, k, v by place."""
    layer = sparsec.compile(sparsec.preset("full"), target="interpreter")
    q, k, v = sparsec.inputs(layer.variant, T=4).values()
    with pytest.raises(sparsec.InputError, match=r"3 arguments without names.*Fix: layer\(q=…, k=…, v=…\)"):
        layer(q, k, v)
