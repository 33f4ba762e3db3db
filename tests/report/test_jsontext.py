"""The text of a report is that of the standard library, which is slower."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from onnx24.report.jsontext import json_text

_LEAVES = [None, True, False, 3, -(10**20), 1.5, 1e300, -0.0, 'é"\n\u2028\\ x', "", "\ud83d"]


def _document(random_: random.Random, depth: int) -> Any:
    kind = random_.random() if depth else 0.0
    items = range(random_.randrange(4))
    if kind < 0.3:
        return random_.choice(_LEAVES)
    if kind < 0.6:
        return [_document(random_, depth - 1) for _ in items]
    return {f'{random_.choice("aé")}"{i}': _document(random_, depth - 1) for i in items}


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_the_standard_librarys(seed: int, ascii_only: bool) -> None:
    random_ = random.Random(seed)
    for _ in range(300):
        document = _document(random_, 5)
        text = json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=False)
        assert json_text(document, ascii_only=ascii_only) == f"{text}\n"
