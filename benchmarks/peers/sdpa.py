"""Dense causal attention as torch has it: a form per backend on a GPU, whatever torch picks on the CPU."""

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.peers.form import Compiler, Form, Run
from sparsec.benchmarks.step import Step, leaves_of

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def forms(case: Case) -> list[Form]:
    """One form per backend."""
    if case.device == "cpu":
        return [_form("cpu", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])]
    return [_form(name, [backend]) for name, backend in BACKENDS.items()]


def _form(name: str, backends: list[SDPBackend]) -> Form:
    def build(case: Case, inputs: Inputs, _compiler: Compiler) -> Run:
        leaves = leaves_of(case, {n: inputs[n] for n in ("q", "k", "v")}, heads_first=True)

        def forward() -> Tensor:
            with sdpa_kernel(backends):
                q, k, v = leaves.values()
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=case.group > 1)

        return Step(case, forward, leaves, heads_first=True) if case.train else lambda: forward().transpose(1, 2)

    return Form("sdpa", name, build)
