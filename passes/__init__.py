"""The passes of onnx24, one a file. This module is their manifest and no more.

Source: the names and order below are what `onnx24 passes` lists.
"""

if __name__ != "onnx24.passes":
    raise ImportError(
        f"this package is onnx24.passes; it must not be imported as {__name__!r} "
        "(install the checkout, or import onnx24 first)"
    )

MANIFEST = {
    "canonicalize": "onnx24.passes.canonicalize:Canonicalize",
    "upgrade-opset": "onnx24.passes.upgrade_opset:UpgradeOpset",
    "equalize": "onnx24.passes.equalize:Equalize",
    "smooth-quant": "onnx24.passes.smoothquant:SmoothQuant",
    "permute24": "onnx24.passes.permute24:Permute24",
    "prune24": "onnx24.passes.prune24:Prune24",
    "qdq": "onnx24.passes.qdq:Qdq",
    "fold-qdq": "onnx24.passes.fold_qdq:FoldQdq",
    "lint": "onnx24.passes.lint:Lint",
    "matmul-to-conv1x1": "onnx24.passes.matmul_to_conv1x1:MatmulToConv1x1",
    "conv1x1-to-matmul": "onnx24.passes.conv1x1_to_matmul:Conv1x1ToMatmul",
    "cast16": "onnx24.passes.cast16:Cast16",
    "spmm-plugin": "onnx24.passes.spmm_plugin:SpmmPlugin",
    "check24": "onnx24.passes.check24:Check24",
    "pack24": "onnx24.passes.pack24:Pack24",
    "unpack24": "onnx24.passes.unpack24:Unpack24",
}
