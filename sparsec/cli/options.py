"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="VARIANT [KNOB=VALUE]… [DIM=SIZE]…",
        help="A preset, a .sparsec file, - for its text on standard input, or file.py:name; knobs in lower case, "
        "dims (T, TQ, B, H, HKV, D…) in capitals.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
TargetName = Annotated[
    str,
    typer.Option(
        "--target", "-t", help="auto, cpu, cuda, interpreter, tvm:llvm or triton:<arch> such as triton:sm_90."
    ),
]
Dtype = Annotated[
    str, typer.Option(help="float32, float16 or bfloat16; by default float32, and bfloat16 on a GPU target.")
]
