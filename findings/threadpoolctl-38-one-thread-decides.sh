#!/usr/bin/env bash
# From threadpoolctl 3.8 on, limits on OpenBLAS (numpy's and scipy's wheels) set by a second Python
# thread do nothing, without a word, while the first thread that set one is alive and has not left its
# `with`; in 3.7 the last call won. Two threads whose `with threadpool_limits(1)` overlap: once the
# first leaves, the second computes on all cores for the rest of its block. Code that holds BLAS to
# one thread for repeatable sums, or in a service's worker threads, gets it only sometimes.
# Versions: numpy 2.4.6, threadpoolctl 3.7.0 and 3.8.0; needs two cores. Expected of an expert: that
# inside `with threadpool_limits(1)` a product runs on one thread, or an error.
# Output seen (threads of OpenBLAS as the second thread sees them inside its own block):
#   3.7.0: a limit of 1 set by a second thread while the first has set 2: 1
#   3.8.0: a limit of 1 set by a second thread while the first has set 2: 2
#   3.7.0: limit of 1 in the second thread's block, after the first left its own: 2
#   3.8.0: limit of 1 in the second thread's block, after the first left its own: 2
set -eu
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"
"$d/v/bin/pip" -q install numpy==2.4.6
for version in 3.7.0 3.8.0; do
  "$d/v/bin/pip" -q install --no-deps --target "$d/$version" "threadpoolctl==$version"
  OPENBLAS_NUM_THREADS=2 PYTHONPATH="$d/$version" "$d/v/bin/python" - <<'PY'
import threading
import numpy
import threadpoolctl
from threadpoolctl import threadpool_info, threadpool_limits

count = lambda: threadpool_info()[0]["num_threads"]

def second(work):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(work()))
    thread.start(); thread.join()
    return seen[0]

def limited():
    with threadpool_limits(1):
        return count()

with threadpool_limits(2):
    ignored = second(limited)
version = threadpoolctl.__version__
print(f"{version}: a limit of 1 set by a second thread while the first has set 2: {ignored}")

entered, left = threading.Event(), threading.Event()

def overlapping():
    with threadpool_limits(1):
        entered.set(); left.wait()
        return count()

seen = []
thread = threading.Thread(target=lambda: seen.append(overlapping()))
with threadpool_limits(1):
    thread.start(); entered.wait()
left.set(); thread.join()
print(f"{version}: limit of 1 in the second thread's block, after the first left its own: {seen[0]}")
assert ignored == {"3.7.0": 1, "3.8.0": 2}[version] and seen == [2], (ignored, seen)
PY
done
