"""`sparsec compile`: one file with every kernel of a variant, that runs and checks itself without sparsec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sparsec.cli.options import AsJson, Dtype, TargetName, Words
from sparsec.cli.output import print_json, say

Packed = Annotated[bool, typer.Option("--packed", help="For documents that follow one another, by cu_seqlens.")]
Out = Annotated[str, typer.Option("--out", "-o", help="The file to write; standard output without it.")]


def export(
    words: Words,
    target: TargetName = "auto",
    dtype: Dtype = "",
    packed: Packed = False,
    out: Out = "",
    as_json: AsJson = False,
) -> None:
    """Write a variant as one readable Python file: kernels, launcher and self-check; heads and head dims are fixed.

    The file needs torch and Triton (or TVM), not sparsec: `python FILE.py` checks it, `from FILE import run` uses it.
    """
    from sparsec.cli.recorded import recorded, recorded_packed
    from sparsec.cli.setting import setting
    from sparsec.runtime.exported.export import export as text_of

    if out:
        _check_folder(Path(out).parent)
    chosen = setting(words, target, dtype)
    check = recorded_packed(chosen) if packed else recorded(chosen)
    text = text_of(chosen.compiled, chosen.dims, chosen.dtype, check, packed)
    if out:
        _write(Path(out), text)
    if as_json:
        kernels = [kernel.name for kernel in chosen.plan.kernels]
        written = {"file": out} if out else {"file": None, "source": text}
        print_json({**written, "kernels": kernels, "target": chosen.compiled.target.name})
    elif out:
        say(f"{out}: {len(chosen.plan.kernels)} kernels, {len(text.splitlines())} lines; `python {out}` checks it")
    else:
        print(text, end="")


def _check_folder(folder: Path) -> None:
    """Raise InputError where the file's folder is none, before anything is compiled."""
    from sparsec.ir.error import InputError

    if not folder.is_dir():
        rule = "it is no folder" if folder.exists() else "there is no such folder"
        raise InputError("--out", str(folder), rule, f"make the folder, mkdir -p {folder}, or name another")


def _write(path: Path, text: str) -> None:
    """All of the file or none of it; what a link points to, not the link; straight into devices and pipes."""
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    whole = Path(os.path.realpath(path))
    draft = whole.with_name(f".{whole.name}.draft")
    try:
        draft.write_text(text)
        draft.replace(whole)
    finally:
        draft.unlink(missing_ok=True)
