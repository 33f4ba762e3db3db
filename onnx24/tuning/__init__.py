"""The cheapest form of each layer that keeps a model within a limit.

`costs` says what a layer costs in each form (an estimate), `sensitivity` measures what each form
does to the outputs, `search` chooses. Driver's `tune` puts them together and verifies the whole.
"""
