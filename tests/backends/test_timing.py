"""Running engines: on recorded API surfaces with a stand-in for the driver, and by trtexec.

Nothing here has run on a GPU; the one test that does is marked so."""

import ctypes
import stat
import sys
import textwrap
from pathlib import Path

import pytest
from recorded_trt import RELEASES, surface

from onnx24.backends import Profile, running
from onnx24.backends.base import cuda_devices
from onnx24.backends.running import require_gpu, run_command, run_with_python, run_with_trtexec
from onnx24.backends.tensorrt import TensorRT
from onnx24.backends.timing import Cuda, time_engines
from onnx24.errors import BackendError


class FakeCuda:
    """Counts bytes and gives each run the next time."""

    stream = 7

    def __init__(self):
        self.allocated, self.uploaded, self.clock = {}, {}, 0.0

    def allocate(self, nbytes):
        address = 1000 + len(self.allocated)
        self.allocated[address] = nbytes
        return address

    def upload(self, address, data):
        self.uploaded[address] = data

    def start(self):
        pass

    def stop(self):
        self.clock += 1.0
        return self.clock


@pytest.mark.parametrize("release", RELEASES)
def test_engines_run_in_turns_with_their_own_memory(release):
    trt, cuda = surface(release), FakeCuda()
    times = time_engines(
        trt, cuda, None, {"a": b"A", "b": b"B"}, {"x": [3, 4]}, rounds=2, runs=2
    )  # fmt: skip
    # The warm-up takes 1 to 4; then backward, then forward.
    assert times == {"a": [[7.0, 8.0], [9.0, 10.0]], "b": [[5.0, 6.0], [11.0, 12.0]]}
    order = [plan for plan, *_ in trt.executed]
    assert order == [b"A"] * 2 + [b"B"] * 4 + [b"A"] * 4 + [b"B"] * 2
    assert list(cuda.allocated.values()) == [24, 48, 24, 48], "x is HALF, y FLOAT, [3, 4] each"
    assert [len(data) for data in cuda.uploaded.values()] == [24, 24]
    assert {stream for _, stream, *_ in trt.executed} == {7}
    assert len({(x, y) for _, _, x, y in trt.executed}) == 2


def test_an_engine_that_does_not_load():
    with pytest.raises(RuntimeError, match="engine b does not load"):
        time_engines(
            surface("10"), FakeCuda(), None, {"a": b"A", "b": b"broken"}, {"x": [1, 4]},
            rounds=2, runs=1,
        )  # fmt: skip


def test_no_gpu_is_one_sentence(monkeypatch):
    monkeypatch.setattr(running, "cuda_devices", lambda: 0)
    with pytest.raises(BackendError, match="none is here") as caught:
        require_gpu()
    assert caught.value.code == "O24-510" and caught.value.exit_code == 3
    monkeypatch.setattr(running, "cuda_devices", lambda: 1)
    require_gpu()


def test_the_command_that_runs_an_engine():
    argv = run_command(
        Path("e"), Path("t.json"), {"x": Profile((1, 4), (8, 4), (16, 4))}, seconds=2
    )
    assert argv == [
        "trtexec", "--loadEngine=e", "--exportTimes=t.json", "--shapes=x:8x4", "--warmUp=200",
        "--duration=2", "--noDataTransfers", "--useSpinWait",
    ]  # fmt: skip


@pytest.fixture
def program(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(body):
        path = folder / "trtexec"
        path.write_text(
            f"#!{sys.executable}\nimport sys, os\n"
            "flags = dict(a.split('=', 1) for a in sys.argv[1:] if '=' in a)\n"
            + textwrap.dedent(body)
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


def test_times_of_trtexec(program, tmp_path):
    program("""
    open(flags["--exportTimes"], "w").write('[{"computeMs": 0.5, "latencyMs": 9}, '
                                            '{"computeMs": 0.7, "latencyMs": 9}]')
    """)
    assert run_with_trtexec(tmp_path / "e", {}, seconds=1, timeout_s=30) == [0.5, 0.7]


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("print('[E] [TRT] no such engine'); sys.exit(1)", "O24-502", "no such engine"),
        ("pass", "O24-502", "exported no times"),
        ("os.kill(os.getpid(), 11)", "O24-503", "SIGSEGV"),
    ],
)
def test_a_run_that_fails(program, tmp_path, body, code, says):
    program(body)
    with pytest.raises(BackendError, match=says) as caught:
        run_with_trtexec(tmp_path / "e", {}, seconds=1, timeout_s=30)
    assert caught.value.code == code


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU: the fault would be another")
def test_the_child_process_says_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "recorded_module.py").write_text(
        "from recorded_trt import surface\n"
        "globals().update({k: v for k, v in vars(surface('10')).items() if k != '__name__'})\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent}")

    class Recorded(TensorRT):
        module = "recorded_module"

    (tmp_path / "e").write_bytes(b"plan")
    with pytest.raises(BackendError, match=r"libcuda|nvcuda|cuInit") as caught:
        run_with_python(
            Recorded(), {"dense": tmp_path / "e"}, {}, rounds=8, runs=1, timeout_s=60
        )  # fmt: skip
    assert caught.value.code == "O24-502" and caught.value.exit_code == 3


@pytest.mark.gpu
def test_memory_and_events_on_a_gpu():
    cuda = Cuda()
    address = cuda.allocate(1024)
    cuda.upload(address, bytes(1024))
    cuda.start()
    assert 0 <= cuda.stop() < 1000
    cuda.free(address)
    assert isinstance(cuda._lib, ctypes.CDLL)
