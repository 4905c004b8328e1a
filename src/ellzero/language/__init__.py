"""Compression of language models: every layer a sparse least-squares problem with a bound."""

from ellzero.language.compress import CompressedLayer, CompressionResult, compress
from ellzero.language.distillation import (
    DistilBERTLoss,
    DistillationResult,
    HiddenLoss,
    HintonLoss,
    TinyBERTLoss,
    distill,
)
from ellzero.language.layers import PrunedLayer, prune_layer

__all__ = [
    "CompressedLayer",
    "CompressionResult",
    "DistilBERTLoss",
    "DistillationResult",
    "HiddenLoss",
    "HintonLoss",
    "PrunedLayer",
    "TinyBERTLoss",
    "compress",
    "distill",
    "prune_layer",
]
