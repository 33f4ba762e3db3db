"""Coverage-guided fuzzing of `check` and of every format of its result. Needs the package atheris.

python benchmarks/fuzz_atheris.py CORPUS [libFuzzer's options, such as -max_total_time=600]

It stops at the first input that leads to an exit code outside the contract, or to a result that a
format cannot write. CORPUS is a folder of small models; what is found is added to it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["onnx24"]):
    from onnx24.gate.judge import judge
    from onnx24.report.annotations import render_annotations
    from onnx24.report.checked import Checked
    from onnx24.report.checktext import render_text
    from onnx24.report.junit import render_junit
    from onnx24.report.policy import read_policy
    from onnx24.report.sarif import render_sarif

POLICY = read_policy("registry-strict")
FOLDER = tempfile.TemporaryDirectory(prefix="onnx24-fuzz-")
CASE = Path(FOLDER.name, "case.onnx")


def one(data: bytes) -> None:
    CASE.write_bytes(data)
    result = judge(str(CASE), POLICY, target="sm86-trt10")
    if result.exit_code not in (0, 1, 2):
        raise RuntimeError("; ".join(problem.render() for problem in result.problem))
    if Checked.unpacked(result.packed()) != result:
        raise RuntimeError("the result does not cross a process boundary")
    for render in (render_sarif, render_junit, render_annotations, render_text):
        render([result])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
