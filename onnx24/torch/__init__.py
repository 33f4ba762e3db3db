"""2:4 sparsity and INT8 in a training loop of one's own: five lines, and the file that results.

    from onnx24.torch import export, keep_masks, quantize, sparsify

    sparsity = sparsify(model)                   # 2:4 by magnitude; print(sparsity) tells all
    quantize(model, batches)                     # INT8 fake quantizers, calibrated; or none
    optimizer = keep_masks(optimizer, sparsity)  # zeros stay zeros, in its state as well
    ...                                          # the loop as it was
    export(model, example, "model.onnx", sparsity, batches)

The file holds exact zeros and QuantizeLinear/DequantizeLinear, and goes to `onnx24 check`,
`onnx24 opt --pipeline fold-qdq` and `onnx24 build`. Needs torch (`pip install 'onnx24[train]'`).
docs/training.md has the rest: progressive masks, learned scales, several processes.
"""

from onnx24.torch.export import export
from onnx24.torch.quantizers import Quantized, quantize
from onnx24.torch.sparse import Progressive, Sparsity, keep_masks, sparsify

__all__ = [
    "Progressive",
    "Quantized",
    "Sparsity",
    "export",
    "keep_masks",
    "quantize",
    "sparsify",
]
