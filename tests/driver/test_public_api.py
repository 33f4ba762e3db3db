"""The package as a library: what the shell does, Python does, and nothing else happens."""

from __future__ import annotations

import doctest
import hashlib
import importlib
import inspect
import io
import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from typer.testing import CliRunner

import onnx24
from onnx24.cli.app import app
from onnx24.passmgr import registry
from onnx24.passmgr.options import field_options
from onnx24.testing.generate import mlp

FUNCTIONS = [name for name in onnx24.PUBLIC if inspect.isfunction(getattr(onnx24, name))]
X = np.random.default_rng(1).standard_normal((64, 64), np.float32)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name: str, work: Path) -> None:
    if name == "recover":
        pytest.importorskip("torch", reason="the extra [train] is not installed")
    function = getattr(onnx24, name)
    found = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in found:
        runner.run(test, out=said.write)
    assert runner.tries > 1, "a public function has an example"
    assert not runner.failures, said.getvalue()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, onnx24; from onnx24 import errors, targets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"onnx", "numpy", "onnxruntime", "typer", "onnx24.driver.passes"}


@pytest.mark.parametrize("preset", ["sparse-int8", "sparse-fp16"])
def test_shell_and_python_give_the_same_bytes(preset: str, work: Path) -> None:
    onnx.save(mlp([64, 64, 32]), "m.onnx")
    np.savez("x.npz", x=X)
    told = shell(
        "compile", "m.onnx", "-o", "a.onnx", "--preset", preset, "--calib", "x.npz", "--json"
    )
    by_path = onnx24.compile("m.onnx", preset=preset, calib="x.npz", output="b.onnx")
    by_arrays = onnx24.compile("m.onnx", preset=preset, calib={"x": X})
    by_arrays.save("c.onnx")
    files = [Path(name).read_bytes() for name in ("a.onnx", "b.onnx", "c.onnx")]
    assert files[0] == files[1] == files[2]
    document, ours = json.loads(told.stdout), by_path.to_dict()
    for key in ("pipeline", "weights", "passes", "comparison", "data", "coverage", "status"):
        assert document[key] == ours[key], key
    assert by_arrays.model.SerializeToString(deterministic=True) == files[0]


def test_every_form_of_a_model_is_taken_and_left_as_it_was(work: Path) -> None:
    proto = mlp([64, 32])
    onnx.save(proto, "m.onnx")
    graph = gs.import_onnx(proto)
    before = proto.SerializeToString(deterministic=True)
    forms: list[Any] = ["m.onnx", Path("m.onnx"), proto, before, graph, onnx24.load(proto)]
    first = onnx24.prune24(proto)
    for form in [*forms, onnx24.canonicalize(proto)]:
        result = onnx24.prune24(form)
        (values,) = [v for v in onnx24.diff(proto, result).values if v.name == "fc0.weight"]
        assert values.is_24 == (False, True)
        assert onnx24.diff(first, result).values == []
    assert proto.SerializeToString(deterministic=True) == before
    assert gs.export_onnx(graph).graph.node == gs.export_onnx(gs.import_onnx(proto)).graph.node
    assert [path.name for path in work.iterdir()] == ["m.onnx"], "nothing is written unasked"
    for wrong in (3, None, onnx24):
        with pytest.raises(onnx24.InputError):
            onnx24.inspect(wrong)


def test_external_data_of_a_model_in_memory_need_their_folder(work: Path) -> None:
    onnx.save(mlp([64, 64]), "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    proto = onnx.load("m.onnx", load_external_data=False)
    with pytest.raises(onnx24.InputError):
        onnx24.prune24(proto)
    result = onnx24.prune24(onnx24.load(proto, base_dir=work))
    assert onnx24.diff("m.onnx", result).values[0].is_24 == (False, True)
    result.save("out.onnx")
    assert Path("out.onnx.data").is_file()
    with pytest.raises(onnx24.InputError):
        result.save("m.onnx", external="external") if False else onnx24.load("m.onnx", base_dir=".")


def test_an_unmet_limit_raises_with_the_finished_result(work: Path) -> None:
    with pytest.raises(onnx24.NotMetError) as caught:
        onnx24.compile(mlp([64, 32]), calib={"x": X}, max_drop={"sqnr": 200}, output="o.onnx")
    err = caught.value
    assert err.code == "O24-600" and err.diagnostics[0].facts and err.diagnostics[0].hint
    assert err.result.status == "limits not met" and err.result.comparison[0]["sqnr_db"] < 200
    assert list(work.iterdir()) == []


def test_four_threads_give_what_one_does() -> None:
    def compiled(seed: int) -> bytes:
        proto = mlp([64, 64, 32], seed=seed)
        found = onnx24.compile(proto, calib={"x": X}).model
        return found.SerializeToString(deterministic=True)

    alone = [compiled(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(compiled, range(4))) == alone


def test_progress_and_logging_are_for_who_asks(caplog: Any, capfd: Any) -> None:
    steps: list[onnx24.Progress] = []
    with caplog.at_level(logging.INFO, logger="onnx24"):
        onnx24.compile(mlp([64, 32]), calib={"x": X}, progress=steps.append)
    assert {"loading into ONNX Runtime", "comparing with the original"} <= {s.label for s in steps}
    assert any("prune24" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")

    def stop(step: onnx24.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnx24.compile(mlp([64, 32]), progress=stop)


def test_rows_make_tables_and_a_result_shows_its_report() -> None:
    result = onnx24.prune24(mlp([64, 32]))
    rows = result.weights.to_dict()
    assert json.loads(json.dumps(rows)) == rows and isinstance(rows[0], dict)
    assert "fc0.weight" in result.weights._repr_html_()
    assert result._repr_html_().startswith("<iframe") and "fc0.weight" in result._repr_html_()
    assert result.comparison == [] and result.to_dict()["command"] == "prune24"


@pytest.mark.parametrize("name", registry.names())
def test_a_pass_is_a_function_with_its_manual_and_its_options(name: str) -> None:
    function = getattr(onnx24, name.replace("-", "_"))
    cls = registry.get(name)
    assert function.__doc__ == inspect.getdoc(cls)
    parameters = inspect.signature(function).parameters
    for option in field_options(cls):
        assert parameters[option.field].default == (
            option.default.value if hasattr(option.default, "value") else option.default
        )
    assert {"model", "calib", "output", "target"} <= parameters.keys()


def test_options_of_a_pass_are_words_or_members() -> None:
    text = onnx24.optimize(mlp([64, 64, 32]), "prune24{include=fc0* method=magnitude}").to_dict()
    ours = onnx24.prune24(mlp([64, 64, 32]), include="fc0*", method="magnitude").to_dict()
    assert text["pipeline"] == ours["pipeline"] and text["weights"] == ours["weights"]
    for wrong, code in (({"method": "magnitud"}, "O24-023"), ({"methd": "x"}, "O24-022")):
        with pytest.raises(onnx24.InputError) as caught:
            onnx24.prune24(mlp([64, 32]), **wrong)
        assert caught.value.code == code
    with pytest.raises(AttributeError, match="did you mean 'prune24'"):
        getattr(onnx24, "prune42")  # noqa: B009


def test_a_fault_of_ours_can_be_replayed_and_writes_nothing_unasked(work: Path) -> None:
    from onnx24.passmgr.instrument import Instrument, Step

    class Broken(Instrument):
        def after_pass(self, step: Step) -> None:
            raise RuntimeError("boom")

    with pytest.raises(onnx24.InternalError) as caught:
        onnx24.optimize(mlp([64, 32]), "prune24", instruments=[Broken()])
    assert list(work.iterdir()) == [] and caught.value.write_reproducer is not None
    folder = caught.value.write_reproducer(work)
    assert (folder / "model.onnx").is_file() and "prune24" in (folder / "pipeline.txt").read_text()


def test_a_script_gives_the_samples_on_the_command_line(work: Path) -> None:
    onnx.save(mlp([64, 32]), "m.onnx")
    Path("s.py").write_text(
        "import numpy as np\ndef load_data():\n"
        "    for i in range(20):\n        yield {'x': np.full((1, 64), i, np.float32)}\n"
        "def fails():\n    raise SystemExit(5)\n"
    )
    told = shell("compile", "m.onnx", "-o", "o.onnx", "--calib", "s.py:load_data", "--json")
    assert json.loads(told.stdout)["data"][0]["description"].startswith("the function s.py:load")
    for spec in ("s.py:fails", "s.py:nothing", "none.py:f"):
        result = CliRunner().invoke(app, ["compile", "m.onnx", "--calib", spec])
        assert result.exit_code == 2 and "O24-030" in result.output, result.output


def test_the_whole_readme_with_the_public_module_only(
    work: Path, fixture_models: Any, digits_calib: Path
) -> None:
    cnn, vit = str(fixture_models["cnn"].path), str(fixture_models["vit"].path)
    result = onnx24.compile(cnn, calib=str(digits_calib), preset="sparse-int8")
    path = result.save("cnn.onnx")
    assert any(row.is_24 for row in onnx24.inspect(path).rows)
    assert onnx24.compare(cnn, path, str(digits_calib)).rows[0]["cosine"] > 0.5
    sparse = onnx24.prune24(vit)
    assert onnx24.optimize(vit, "canonicalize,prune24,check24").report.coverage.share == 1
    assert onnx24.check(path, policy="tensorrt-importable").met
    assert not onnx24.diff(vit, sparse).is_empty
    assert onnx24.verify_provenance(sparse, vit).holds
    shapes = {"image": (32, 1, 8, 8)}
    argv = onnx24.trtexec_command(path, engine="cnn.engine", shapes=shapes)
    assert argv[0] == "trtexec" and hashlib.sha256(path.read_bytes()).hexdigest()
    assert onnx24.bench(cnn, estimated=True, shapes=shapes).document["batches"]


def test_what_is_exported_is_there_and_pickles_by_name() -> None:
    for name, module in onnx24.PUBLIC.items():
        assert getattr(importlib.import_module(f"onnx24.{module}"), name) is getattr(onnx24, name)
    assert pickle.loads(pickle.dumps(onnx24.compile)) is onnx24.compile
    assert {"compile", "prune24", "smooth_quant"} <= set(dir(onnx24))
