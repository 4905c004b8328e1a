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
from ellzero.language.folders import load_compact
from ellzero.language.layers import PrunedLayer, prune_layer
from ellzero.language.quantization import QuantizedLayer, Quantizer, quantize_layer

__all__ = [
    "CompressedLayer",
    "CompressionResult",
    "DistilBERTLoss",
    "DistillationResult",
    "HiddenLoss",
    "HintonLoss",
    "PrunedLayer",
    "QuantizedLayer",
    "Quantizer",
    "TinyBERTLoss",
    "compress",
    "distill",
    "load_compact",
    "prune_layer",
    "quantize_layer",
]
