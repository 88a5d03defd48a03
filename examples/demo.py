"""The main job on real inputs: two variants tuned for this machine.

The same as `sparsec tune VARIANT --inputs FILE.npz --out FOLDER`, twice. What it finds is printed, and left in
demo-out: kernels, trials, results.json and report.html.
"""

import sys
from pathlib import Path

from sparsec.cli import main

HERE = Path(__file__).resolve().parent
INPUTS = HERE / "data" / "smollm2_layer8_2048.npz"
OUT = HERE.parent / "demo-out"
VARIANTS = (
    ["msa", "window=256", "sinks=4", "slots=32"],
    ["hsa", "chunk=64", "k=8", "landmark=mean", "retrieval=group_mean"],
)
SECONDS = 70

if __name__ == "__main__":
    options = ["--inputs", str(INPUTS), "--out", str(OUT), "--trials", "200", "--seconds", str(SECONDS)]
    sys.exit(max(main(["tune", *words, *options, *sys.argv[1:]]) for words in VARIANTS))
