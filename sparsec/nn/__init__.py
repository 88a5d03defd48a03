"""Small torch modules: a layer per family over any preset, and a language model of them.

``nn.LanguageModel(256, 128, [nn.GatedDeltaNet(128, 2) for _ in range(4)])`` is a model;
``nn.Layer(variant, dim, heads)`` is a layer of any declaration. Parameters are those of a torch module: ``state_dict``
saves and loads them.
"""

from sparsec.nn.convolution import ShortConvolution
from sparsec.nn.families import (
    GLA,
    GSA,
    HGRN2,
    HSA,
    KDA,
    RSA,
    RWKV7,
    SSE,
    Attention,
    DeltaNet,
    DeltaProduct,
    GatedDeltaNet,
    GatedDeltaNet2,
    LinearAttention,
    LogLinear,
    LoLA,
    Mamba2,
    RetNet,
    State,
)
from sparsec.nn.layer import Layer
from sparsec.nn.layer_cache import LayerCache, LayerSnapshot
from sparsec.nn.model import Block, LanguageModel, Mlp

__all__ = [
    "GLA",
    "GSA",
    "HGRN2",
    "HSA",
    "KDA",
    "RSA",
    "RWKV7",
    "SSE",
    "Attention",
    "Block",
    "DeltaNet",
    "DeltaProduct",
    "GatedDeltaNet",
    "GatedDeltaNet2",
    "LanguageModel",
    "Layer",
    "LayerCache",
    "LayerSnapshot",
    "LinearAttention",
    "LoLA",
    "LogLinear",
    "Mamba2",
    "Mlp",
    "RetNet",
    "ShortConvolution",
    "State",
]
