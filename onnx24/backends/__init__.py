"""The hand-off to TensorRT: one interface, three backends.

tensorrt-rtx builds for a named compute capability without a GPU; tensorrt and trtexec build on
the GPU they run on. Every build runs in a child process, so that a crash, a hang or a kill ends
in one BackendError. Source: docs/targets.md for what each release can do.
"""

from onnx24.backends.base import (
    Availability,
    Backend,
    BuildOptions,
    BuildResult,
    Layer,
    Profile,
    get,
    names,
    parse_shapes,
)

__all__ = [
    "Availability",
    "Backend",
    "BuildOptions",
    "BuildResult",
    "Layer",
    "Profile",
    "get",
    "names",
    "parse_shapes",
]
