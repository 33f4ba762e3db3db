"""The whole jobs: compile, optimize, compare, recover and the others, for Python and for the
command line alike.

No terminal, no `SystemExit`, no path that only a shell has: progress goes through a callback, what
happened comes back as an object, what went wrong as an exception with code, facts and hint. Nothing
is written but what an argument names. `onnx24/__init__.py` re-exports the functions.
"""

import logging

# A library says nothing by itself; whoever configures logging hears it.
logging.getLogger("onnx24").addHandler(logging.NullHandler())
