"""Results as JSON and as a page: kept per variant, read back, and sound HTML and SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsec.autotune.job import heat, plots
from sparsec.autotune.job.outcome import RESULTS, Contender, KernelTime, Outcome, Picture, keep, outcomes
from sparsec.autotune.job.page import page
from sparsec.autotune.job.rows import rows

VOID = {"meta", "br"}
TRIALS = [
    {"number": 0, "state": "timed", "ratio": 1.0, "seconds": 0.01, "won": True, "why": "", "reason": ""},
    {
        "number": 1,
        "state": "rejected",
        "ratio": None,
        "seconds": None,
        "won": False,
        "why": "compile",
        "reason": "a < b",
    },
    {"number": 2, "state": "timed", "ratio": 0.5, "seconds": 0.005, "won": True, "why": "", "reason": ""},
    {"number": 3, "state": "lost", "ratio": None, "seconds": None, "won": False, "why": "", "reason": "time is up"},
]
TUNED: dict[str, Any] = {"kernel": "attend_o", "trials": TRIALS, "changed": {"rows": 32}, "stopped": ""}


def outcome(key: str = "toy-1") -> Outcome:
    return Outcome(
        key=key, name="toy", command="sparsec tune toy <x>", target="tvm:llvm", machine="a & b", load=3.0,
        dtype="float32", dims={"B": 1, "TQ": 64}, declaration="variant toy() {\n  j <= i\n}\n",
        passes=[("simplify", "-a\n+b <c>"), ("order", "")], plan="plan toy\n", notes=["slots & more"],
        contenders=[
            Contender("dense SDPA", "torch", 0.1, 6_000_000),
            Contender("FlexAttention", reason="cannot express it: <why>"),
            Contender("sparsec, default schedules", "", 0.05, 1), Contender("sparsec, tuned", "", 0.02, 4_000_000),
        ],
        error=1e-7, tile=2e-7, bounds=(1e-5, 1e-5), right=True,
        mass={"mean": 0.5, "p5": 0.1, "worst_head": 3, "worst": 0.25}, predicted_s=0.03, processor_s=0.025,
        predicted_peak=4_100_000,
        kernels=[KernelTime("attend_o", "TiledAttention", 0.05, 0.02, 0.03, 0.001, {"rows": 32})],
        tuning={"kernels": [TUNED], "seconds": 3.0, "summary": "1 of 3 rejected: 1 compile"},
        pictures=[Picture("what is seen", "<svg></svg>")],
    )  # fmt: skip


class Balanced(HTMLParser):
    """Raises where an element is closed that is not open, and counts what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_balanced_and_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "toy-1" / "kernels" / "tuned").mkdir(parents=True)
    (tmp_path / "toy-1" / "kernels" / "tuned" / "attend_o.py").write_text("if a < b & c: pass")
    text = page([outcome()], tmp_path)
    reader = Balanced()
    reader.feed(text)
    assert reader.open == []
    assert "http" not in text and "src=" not in text and "url(" not in text
    assert "if a &lt; b &amp; c" in text and "cannot express it: &lt;why&gt;" in text and "3 trials" in text


def test_plots_are_xml() -> None:
    made = outcome()
    for svg in (plots.times(made.contenders), plots.predictions(made.kernels), plots.history(TUNED)):
        ElementTree.fromstring(svg)


def test_the_history_marks_what_won_and_what_was_rejected() -> None:
    shapes = [e.attrib.get("class") for e in ElementTree.fromstring(plots.history(TUNED)).iter()]
    assert shapes.count("bad") == 1  # the rejected one; the lost one is not there
    assert shapes.count("own") == 1  # the one that beat the default
    assert "best 0.50" in plots.history(TUNED)


def test_results_are_kept_per_variant(tmp_path: Path) -> None:
    keep(tmp_path, outcome("a"))
    keep(tmp_path, outcome("b"))
    found = keep(tmp_path, replace(outcome("a"), error=0.5))
    assert [(o.key, o.error) for o in found] == [("a", 0.5), ("b", 1e-7)]
    assert outcomes(tmp_path) == found
    assert asdict(outcomes(tmp_path)[0]) == asdict(found[0])


@pytest.mark.parametrize("text", ["", "{}", '{"variants": [{"key": "old"}]}'])
def test_results_of_another_version_count_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    assert outcomes(tmp_path) == []


def test_the_table_answers_every_question() -> None:
    answers = {name.strip(): cell for name, cell in rows([outcome()])}
    assert answers["sparsec, tuned"] == "20 ms, 5.00 times dense"
    assert answers["FlexAttention, compiled"] == "cannot express it: <why>"
    assert answers["predicted for tuned"] == "30 ms, off by a factor of 1.50; a call took 25 ms of each core's time"
    assert answers["dense mass kept"] == "mean 50.0%, 5th percentile 10.0%, worst head 3: 25.0%"
    assert answers["peak memory, tuned"] == "predicted 4.1 MB, measured 4.0 MB"
    assert rows([replace(outcome(), right=False)])[5][1].endswith("WRONG")


def test_tuning_that_finds_nothing_says_that_the_defaults_stay(tmp_path: Path) -> None:
    kept = replace(outcome(), kernels=[replace(outcome().kernels[0], changed={})])
    assert {row[0]: row[1] for row in rows([kept])}["sparsec, tuned"] == "20 ms, 5.00 times dense (the defaults stay)"
    assert "sparsec, tuned (the defaults stay)" in page([kept], tmp_path)
    assert "the defaults stay" not in page([outcome()], tmp_path)


def test_coarse_tiles_average_what_exists() -> None:
    x = torch.zeros(130, 3)
    x[128:] = 1.0
    found = heat.coarse(x)
    assert (
        found.shape == (44, 3) and found[-2].tolist() == [pytest.approx(1 / 3)] * 3 and found[-1].tolist() == [1.0] * 3
    )


def test_chosen_share_counts_lists_and_not_pads() -> None:
    ids = torch.tensor([[0, -1], [2, 0], [-1, -1]])
    assert heat.chosen_share(ids, 3).tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
