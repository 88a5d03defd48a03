"""Runs the patterns that Triton is known to get wrong on Hopper, in processes that a crash may end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PATTERNS = {
    "transposed_sum": "dot(trans(x), y) after accumulated dots, fla issue 640",
    "triangular_inverse": "products around a triangular mask, then both ways, fla issue 984",
    "own_transpose": "dot(k, trans(k)), a crash of the compiler",
    "transposed_product": "dot(trans(dot(q, trans(k))), do), triton issue 6124",
}
WARPS, STAGES, DTYPES = (2, 4, 8), (3,), ("bfloat16", "float16")
LIMIT = 0.01
"""A right kernel's error in bf16 is at most 0.003; the reports speak of 0.5 and more."""
SECONDS = 300.0

Worker = Callable[[Sequence[str]], tuple[list[Mapping[str, object]], str]]
"""From settings to what was printed for those that were reached, and how the process ended; "" for well."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A setting, ``PATTERN,DTYPE,WARPS,STAGES``, and what is wrong with it."""

    setting: str
    wrong: str

    def __str__(self) -> str:
        name, dtype, warps, stages = self.setting.split(",")
        return f"{name} in {dtype} with {warps} warps and {stages} stages: {self.wrong}"


def settings() -> list[str]:
    """Every pattern under every dtype, number of warps and number of stages."""
    every = ((n, d, w, s) for n in PATTERNS for d in DTYPES for w in WARPS for s in STAGES)
    return [f"{name},{dtype},{warps},{stages}" for name, dtype, warps, stages in every]


def faults(wanted: Sequence[str], worker: Worker | None = None) -> list[Fault]:
    """Those of the settings that are wrong on the GPU that is here; what a crash kept from running runs after it."""
    run, left, found = worker or on_gpu, list(wanted), list[Fault]()
    while left:
        answers, ended = run(left)
        found += [fault for answer in answers if (fault := judged(answer))]
        left = left[len(answers) :]
        if left and ended:
            found.append(Fault(left.pop(0), ended))
        elif left:
            raise RuntimeError(f"the process ended well before {left[0]}")
    return found


def judged(answer: Mapping[str, object]) -> Fault | None:
    """A fault, or None where a setting is right."""
    setting, error = str(answer["setting"]), answer.get("error")
    if not isinstance(error, float):
        return Fault(setting, f"raised {answer.get('raised')}")
    return None if error <= LIMIT else Fault(setting, f"error {error:.1e}")


def on_gpu(wanted: Sequence[str]) -> tuple[list[Mapping[str, object]], str]:
    """A process that runs settings on the GPU one after the other."""
    command = [sys.executable, "-m", "sparsec.testing.mistakes.triton_faults", "cuda", *wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        text, ended = done.stdout, f"its process ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        said = late.stdout or ""
        text, ended = said.decode() if isinstance(said, bytes) else said, f"not done after {SECONDS:g} s"
    answers: list[Mapping[str, object]] = [json.loads(x) for x in text.splitlines() if x.startswith("{")]
    return _until_broken(answers, ended)


def _until_broken(answers: list[Mapping[str, object]], ended: str) -> tuple[list[Mapping[str, object]], str]:
    """What was said before an error after which the GPU's context is unusable, so that nothing later counts."""
    for position, answer in enumerate(answers):
        raised = str(answer.get("raised", ""))
        if any(word in raised for word in ("illegal memory", "misaligned", "CUDA error", "unspecified launch")):
            return answers[:position], raised
    return answers, ended
