"""The examples that train run small on a CPU, and what they say of a model that knows or does not know is right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = [
    "--steps",
    "2",
    "--batch",
    "2",
    "--length",
    "24",
    "--pairs",
    "2",
    "3",
    "--times",
    "1",
    "2",
    "--dim",
    "16",
    "--head",
    "8",
    "--test-tokens",
    "48",
    "--parameters",
    "40000",
    "--device",
    "cpu",
]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECALL = load("train_recall")


def test_a_page_trains_a_model_and_continues(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    words = "--layers gla,full --hidden-size 32 --head-dim 16 --seq-len 32 --batch-size 4 --steps 21 --max-new-tokens 4"
    loss = load("lm").main(words.split())
    assert loss < 4.0  # that of a model that knows nothing is log(256) = 5.5
    assert '"""A language model' in capsys.readouterr().out


@pytest.mark.parametrize("task", ["mqar", "passkey"])
def test_recall_leaves_a_table_and_a_plot(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RECALL.main(["--task", task, "--models", "gdn", "full", "--out", str(tmp_path), *SMALL])
    row = json.loads((tmp_path / f"{task}_gdn.json").read_text())
    assert row["steps"] == 2 and list(row["accuracy"]) == (["2", "3"] if task == "mqar" else ["24", "48"])
    assert abs(row["parameters"] / 40000 - 1) < 0.15
    assert "| gdn | 0.04 M | 2 |" in capsys.readouterr().out
    assert (tmp_path / f"{task}.svg").read_text().count("<polyline") == 2


def test_models_train_side_by_side_once_all_are_built(tmp_path: Path) -> None:
    words = ["--models", "gdn", "full", "--out", str(tmp_path), *SMALL]
    (tmp_path / "mqar.go").touch()  # of an earlier run
    RECALL.spread(RECALL.options(words), words)
    rows = [json.loads((tmp_path / f"mqar_{name}.json").read_text()) for name in ("gdn", "full")]
    assert [row["steps"] for row in rows] == [2, 2]
    began = (tmp_path / "mqar.go").stat().st_mtime
    assert all((tmp_path / f"mqar_{name}.built").stat().st_mtime <= began for name in ("gdn", "full"))


def test_a_model_that_was_cut_off_has_a_row(tmp_path: Path) -> None:
    rows = [{"model": name, "parameters": 1e6, "steps": 3, "accuracy": found}
            for name, found in (("sse", {"4": 0.5}), ("gdn", {"4": 1.0, "8": 0.75}))]  # fmt: skip
    assert "| sse | 1.00 M | 3 | 50 % | – |\n| gdn | 1.00 M | 3 | 100 % | 75 % |" in RECALL.table(rows)
    assert RECALL.plot(rows, "mqar").count("<polyline") == 2


def test_a_model_that_is_missing_is_named() -> None:
    with pytest.raises(SystemExit, match="no model 'lstm'; there are full, gla"):
        RECALL.main(["--models", "lstm", "--device", "cpu"])


def test_keys_are_asked_for_the_values_that_were_told() -> None:
    ids, targets = RECALL.mqar(3, 4, 20, "cpu")
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        told = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(told) == 4
        assert wanted == [-100] * 8 + [told[row[n]] if n % 2 == 0 else -100 for n in range(8, 20)]


def test_a_passkey_stands_once_in_the_noise() -> None:
    ids, targets = RECALL.passkey(3, 5, 30, "cpu")
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        at = row.index(RECALL.MARK)
        assert [t for t in wanted if t != -100] == row[at + 1 : at + 6] == row[-5:]
        assert row[-6] == RECALL.ASK and at + 6 < 25


def test_recall_by_steps_alone_leaves_out_what_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--task", "mqar", *SMALL, "--models", "gla", "gdn", "--seconds", "0", "--out", str(tmp_path), "--resume"]
    trained: list[str] = []
    train = RECALL.train

    def noted(name: str, a: object) -> object:
        trained.append(name)
        return train(name, a)

    monkeypatch.setattr(RECALL, "train", noted)
    RECALL.main(words)
    rows = [json.loads((tmp_path / f"mqar_{name}.json").read_text()) for name in ("gla", "gdn")]
    assert trained == ["gla", "gdn"] and [row["steps"] for row in rows] == [2, 2]
    (tmp_path / "mqar_gdn.json").write_text(json.dumps(rows[1] | {"accuracy": {"2": 0.0}}))  # cut off in its tests
    RECALL.main(words)
    assert trained == ["gla", "gdn", "gdn"]
    assert json.loads((tmp_path / "mqar_gla.json").read_text()) == rows[0]
