"""Solving a model layer by layer, in execution order, on activations that are streamed through it.

`sites` says how a layer reads its activation as rows and its weight as a matrix; `stages` cuts the
graph where a solved layer changes what comes behind; `store` and `segments` run the pieces on the
dense and on the compressed model side by side; `moments` gathers what the solver needs;
`solver` goes through the stages; `judge` measures the result on samples that were held back.
"""
