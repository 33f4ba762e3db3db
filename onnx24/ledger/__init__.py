"""What became of every layer: eligible, chosen, faster.

Reads what a build and a measurement left in files, and brings it together with the model: which
kernel each layer ended up in, what it costs, and what sparsity did for it. Nothing here needs a
GPU or TensorRT, so the build may have run elsewhere.
"""
