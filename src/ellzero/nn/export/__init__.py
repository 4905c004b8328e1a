"""Getting a sparse network out: small files, and modules that run faster.

`save` and `load` write and read one compressed safetensors file, quantized weights as codes of a
few bits; `sizes` tells what each tensor takes. `sparse` returns a copy of a
model whose linear layers run on packed weights where that was measured to be faster; `report` and
`table` say what each layer gained, and which layers stay dense because dense is faster. `compact`
takes dead units out of a model, which leaves a smaller dense one; `changes` and `changes_table`
say what each layer lost. `to_onnx` writes that one for ONNX Runtime.
`semi_structured` does what `sparse` does for 2:4 weights on a GPU.
"""

from ellzero.nn.export.coded import QuantizedLinear
from ellzero.nn.export.compacting import (
    InputSelection,
    LayerChange,
    changes,
    changes_table,
    compact,
)
from ellzero.nn.export.files import (
    StoredTensor,
    load,
    quantized_weights,
    save,
    sizes,
    sizes_table,
)
from ellzero.nn.export.measure import LayerGain, report, sparse, table
from ellzero.nn.export.modules import SparseLinear
from ellzero.nn.export.onnx import OnnxFile, to_onnx
from ellzero.nn.export.quantized import QuantizedWeight
from ellzero.nn.export.two_of_four import has_pattern, semi_structured

__all__ = [
    "InputSelection",
    "LayerChange",
    "LayerGain",
    "OnnxFile",
    "QuantizedLinear",
    "QuantizedWeight",
    "SparseLinear",
    "StoredTensor",
    "changes",
    "changes_table",
    "compact",
    "has_pattern",
    "load",
    "quantized_weights",
    "report",
    "save",
    "semi_structured",
    "sizes",
    "sizes_table",
    "sparse",
    "table",
    "to_onnx",
]
