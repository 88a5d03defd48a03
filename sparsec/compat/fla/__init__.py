"""flash-linear-attention's ops by their names and signatures, over sparsec's kernels.

``from fla.ops import chunk_gla`` becomes ``from sparsec.compat.fla import chunk_gla``. Tensors are ``[B,T,H,D]``,
packed documents ``[1,tokens,H,D]`` with ``cu_seqlens``, states fp32 ``[N,H,K,V]``; each op returns
``(o, final_state)``, the attentions o alone. ``chunk_…`` and ``fused_recurrent_…`` are one function: a schedule decides
how it runs. Options that only choose among kernels are taken and mean nothing; others that sparsec lacks raise
InputError by name.
"""

from sparsec.compat.fla.additive import (
    chunk_gla,
    chunk_linear_attn,
    chunk_retention,
    chunk_simple_gla,
    fused_chunk_gla,
    fused_chunk_linear_attn,
    fused_chunk_retention,
    fused_chunk_simple_gla,
    fused_recurrent_gla,
    fused_recurrent_linear_attn,
    fused_recurrent_retention,
    fused_recurrent_simple_gla,
    parallel_retention,
    parallel_simple_gla,
)
from sparsec.compat.fla.attention import parallel_attn, parallel_forgetting_attn, parallel_moba
from sparsec.compat.fla.delta import (
    chunk_delta_rule,
    chunk_gated_delta_rule,
    chunk_gdn,
    chunk_kda,
    fused_chunk_delta_rule,
    fused_recurrent_delta_rule,
    fused_recurrent_gated_delta_rule,
    fused_recurrent_gdn,
    fused_recurrent_kda,
)
from sparsec.compat.fla.erase import (
    chunk_dplr_delta_rule,
    chunk_gated_delta_product,
    chunk_gdn2,
    chunk_iplr_delta_rule,
    chunk_rwkv7,
    fused_recurrent_dplr_delta_rule,
    fused_recurrent_gdn2,
    fused_recurrent_iplr_delta_rule,
    fused_recurrent_rwkv7,
)
from sparsec.compat.fla.levels import chunk_log_linear_attn
from sparsec.compat.fla.nsa import parallel_nsa
from sparsec.compat.fla.slots import chunk_gsa, chunk_hgrn, fused_recurrent_gsa, fused_recurrent_hgrn

__all__ = [
    "chunk_delta_rule",
    "chunk_dplr_delta_rule",
    "chunk_gated_delta_product",
    "chunk_gated_delta_rule",
    "chunk_gdn",
    "chunk_gdn2",
    "chunk_gla",
    "chunk_gsa",
    "chunk_hgrn",
    "chunk_iplr_delta_rule",
    "chunk_kda",
    "chunk_linear_attn",
    "chunk_log_linear_attn",
    "chunk_retention",
    "chunk_rwkv7",
    "chunk_simple_gla",
    "fused_chunk_delta_rule",
    "fused_chunk_gla",
    "fused_chunk_linear_attn",
    "fused_chunk_retention",
    "fused_chunk_simple_gla",
    "fused_recurrent_delta_rule",
    "fused_recurrent_dplr_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn",
    "fused_recurrent_gdn2",
    "fused_recurrent_gla",
    "fused_recurrent_gsa",
    "fused_recurrent_hgrn",
    "fused_recurrent_iplr_delta_rule",
    "fused_recurrent_kda",
    "fused_recurrent_linear_attn",
    "fused_recurrent_retention",
    "fused_recurrent_rwkv7",
    "fused_recurrent_simple_gla",
    "parallel_attn",
    "parallel_forgetting_attn",
    "parallel_moba",
    "parallel_nsa",
    "parallel_retention",
    "parallel_simple_gla",
]
