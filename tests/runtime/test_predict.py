"""Predictions: work counted on tile programs agrees with hand counts, and times follow the work and the target."""

from __future__ import annotations

import math

import pytest

from sparsec.cli.setting import setting
from sparsec.lower.registry import lower_kernel
from sparsec.runtime.explain import explain
from sparsec.runtime.predict import predict
from sparsec.runtime.target import GPUS, core_rate, find
from sparsec.tile.work import Work, work

WINDOW = ["streaming", "window=512", "sinks=64", "T=2048", "H=9", "HKV=3"]


def of(words: list[str], target: str = "cpu") -> Work:
    """The work of the first kernel."""
    chosen = setting(words, target, "float32")
    kernel = chosen.plan.kernels[0]
    schedule = chosen.compiled.schedule(kernel, chosen.dims)
    return predict(kernel, lower_kernel(kernel.spec, schedule), schedule, chosen.compiled.target, chosen.dims).work


def test_full_attention_by_hand() -> None:
    """Tiles of 32 x 32 on the CPU: query tile n reads n + 1 tiles of keys, two dots of 64 each."""
    found = of(["full", "T=1024", "H=2", "HKV=2"])
    tiles = 2 * sum(n + 1 for n in range(1024 // 32))
    assert found.dots == pytest.approx(tiles * 32 * 32 * (64 + 64) * 2, rel=0.05)
    assert found.programs == 2 * 1024 / 32 and found.steps == pytest.approx(tiles, rel=0.05)


def test_work_grows_with_the_window_and_not_with_the_square_of_the_length() -> None:
    one, two = of(WINDOW), of([*WINDOW[:3], "T=4096", "H=9", "HKV=3"])
    assert 1.9 < two.dots / one.dots < 2.4
    assert of(["streaming", "window=1024", "sinks=64", "T=4096", "H=9", "HKV=3"]).dots > 1.6 * two.dots


def test_tf32_takes_passes() -> None:
    assert of(WINDOW, "triton:sm_90").passes == 6 * of(WINDOW, "triton:sm_90").dots


def test_an_empty_grid_does_nothing() -> None:
    chosen = setting([*WINDOW[:3], "T=0"], "cpu")
    kernel = chosen.plan.kernels[0]
    lowered = lower_kernel(kernel.spec, chosen.compiled.schedule(kernel, chosen.dims))
    params = dict.fromkeys(("B", "TQ", "TK", "q_offset"), 0)
    assert work(lowered.steps[0].program, params) == Work()


@pytest.mark.parametrize("words", [WINDOW, ["hsa", "T=2048"], ["nsa", "T=2048"], ["bigbird", "T=1024"]])
@pytest.mark.parametrize("target", ["cpu", "triton:sm_90", "triton:sm_80"])
def test_every_plan_has_a_time_above_its_floor(words: list[str], target: str) -> None:
    chosen = setting(words, target)
    found = explain(chosen.compiled, chosen.dims, chosen.dtype)
    assert all(k.seconds >= k.floor_s > 0 and math.isfinite(k.seconds) for k in found.kernels)
    assert found.seconds == sum(k.seconds for k in found.kernels)


def test_a_quicker_gpu_is_predicted_to_be_quicker() -> None:
    big = ["streaming", "window=1024", "sinks=64", "T=32768", "H=32", "HKV=8", "D=128", "DV=128"]
    times = {name: setting(big, f"triton:{name}") for name in ("sm_80", "sm_90", "sm_100")}
    seconds = [explain(s.compiled, s.dims, s.dtype).seconds for s in times.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert 1.0e-3 < seconds[1] < 2.2e-3, "hand-written kernels of these tiles took 1.4 to 1.5 ms on an H100"


def test_explain_reaches_the_python_face() -> None:
    chosen = setting(WINDOW, "cpu")
    found = chosen.compiled.explain(chosen.dims)
    assert found.kernels[0].formulas["flops"][0] == "2*B*H*TQ*(D + DV)*(Min(64, TK) + Min(512, TK))"
    assert found.to_dict()["peak"] == 9 * 2048 * 64 * 4


def test_rates_of_this_cpu_are_plausible() -> None:
    assert 20e9 <= find("cpu").dot_rate / find("cpu").processors <= 220e9
    assert all(gpu.dot_rate > 1e14 for gpu in GPUS.values())


INFO = "vendor_id\t: {}\ncpu family\t: {}\nflags\t\t: fpu sse2 avx2 {}\n"


@pytest.mark.parametrize(
    ("cpuinfo", "gigaflops"),
    [
        (INFO.format("AuthenticAMD", 26, "avx512f avx512dq"), 220),
        (INFO.format("AuthenticAMD", 25, "avx512f avx512dq"), 110),
        (INFO.format("GenuineIntel", 26, "avx512f"), 110),
        (INFO.format("AuthenticAMD", 26, ""), 60),
        ("CPU architecture: 8\n", 30),
        ("", 40),
    ],
)
def test_rates_of_a_core(cpuinfo: str, gigaflops: int) -> None:
    assert core_rate(cpuinfo) == gigaflops * 1e9
