"""Recovery: the ONNX graph as a torch module, trained to do again what the dense model does.

`interpreter` runs a model node by node in torch, with its initializers as parameters; `recipes`
says how to train, `trainer` does it, and writes the weights back into the same graph. Torch (extra
`train`) is imported by the modules that compute, not by this one.
"""
