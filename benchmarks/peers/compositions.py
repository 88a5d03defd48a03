"""The PyTorch compositions of HSA and MoBA that a user would write today; none of them holds an array of T x T."""

from sparsec.benchmarks.cases import HsaCase, MobaCase
from sparsec.benchmarks.peers import flex_lookup, gather_sdpa, routed
from sparsec.benchmarks.peers.form import Form


def hsa_forms(_case: HsaCase) -> list[Form]:
    """(a) FlexAttention with a looked-up mask, (b) gather + SDPA over slices, (c) pairs routed by chunk."""
    return [
        Form("torch", "flex_lookup", flex_lookup.build_hsa),
        Form("torch", "gather_sdpa", gather_sdpa.build_hsa),
        Form("torch", "routed", routed.build_hsa),
    ]


def moba_forms(_case: MobaCase) -> list[Form]:
    """(a) FlexAttention with a looked-up mask, (b) gather + SDPA over slices, (c) own block and routed blocks."""
    return [
        Form("torch", "flex_lookup", flex_lookup.build_moba),
        Form("torch", "gather_sdpa", gather_sdpa.build_moba),
        Form("torch", "routed", routed.build_moba),
    ]
