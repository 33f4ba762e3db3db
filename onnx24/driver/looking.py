"""What a model is, and how two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.driver.models import ModelLike, load
from onnx24.report.inspection import Inspection
from onnx24.report.inspection import inspect as inspect_model

if TYPE_CHECKING:
    from onnx24.report.diff import ModelDiff
    from onnx24.targets import Target


def inspect(model: ModelLike, *, target: str | Target = targets.DEFAULT) -> Inspection:
    """List every weight: shape, reduction axis, 2:4 or not, eligible on the target or why not.

    Returns: `rows`, one a weight; `to_dict()` is what `onnx24 inspect --json` prints.
    Raises: InputError.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> found = onnx24.inspect(mlp([64, 32]))
    >>> [(row.name, row.shape, row.axis, row.is_24) for row in found.rows if row.eligible]
    [('fc0.weight', (64, 32), 0, False)]
    """
    source = load(model)
    return inspect_model(source.load(), targets.load(target), source.name)


def diff(a: ModelLike, b: ModelLike) -> ModelDiff:
    """Say how two models differ: nodes, initializers and their values, interface, metadata.

    Raises: InputError.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> model = mlp([64, 32])
    >>> onnx24.diff(model, model).is_empty
    True
    >>> [change.name for change in onnx24.diff(model, onnx24.prune24(model)).values]
    ['fc0.weight']
    """
    from onnx24.report import diff as diffs

    return diffs.diff(load(a).load(), load(b).load())
