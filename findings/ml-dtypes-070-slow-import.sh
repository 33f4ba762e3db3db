#!/usr/bin/env bash
# ml_dtypes 0.7.0 takes 0.4 s of processor time to import, 0.6.0 5 ms, and `import onnx` always imports
# it: a program that only loads a model starts several times slower after an upgrade that onnx's own
# bound (ml_dtypes>=0.5.4) allows. 0.7.0 adds three types (real, imag, float8_e5m3fnu).
# Versions: numpy 2.4.6, onnx 1.23.2, ml_dtypes 0.6.0 and 0.7.0. Expected of an expert: a few milliseconds.
# Output seen (processor seconds, the least of three):
#   ml_dtypes 0.6.0: import ml_dtypes 0.005, import onnx 0.055
#   ml_dtypes 0.7.0: import ml_dtypes 0.391, import onnx 0.442
set -eu
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"
"$d/v/bin/pip" -q install numpy==2.4.6 onnx==1.23.2
for version in 0.6.0 0.7.0; do
  "$d/v/bin/pip" -q install --no-deps --target "$d/$version" "ml_dtypes==$version"
done
"$d/v/bin/python" - "$d" <<'PY'
import os, subprocess, sys

def seconds(version, module):
    code = f"import numpy, time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    path = dict(os.environ, PYTHONPATH=os.path.join(sys.argv[1], version))
    run = lambda: float(subprocess.run([sys.executable, "-c", code], env=path, check=True, capture_output=True, text=True).stdout)
    return min(run() for _ in range(3))

found = {v: [seconds(v, m) for m in ("ml_dtypes", "onnx")] for v in ("0.6.0", "0.7.0")}
for version, (alone, onnx) in found.items():
    print(f"ml_dtypes {version}: import ml_dtypes {alone:.3f}, import onnx {onnx:.3f}")
old, new = found["0.6.0"], found["0.7.0"]
assert new[0] > 20 * old[0] and new[1] > 2 * old[1], found
PY
