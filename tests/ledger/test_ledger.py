"""The ledger from recorded files: both wordings of the log, layers, profiles, run times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from ledger_support import RECORDED, net

from onnx24 import targets
from onnx24.backends import Profile
from onnx24.backends.logs import Layer, Port
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ledger.engine import Engine, nodes_of
from onnx24.ledger.html import render_html
from onnx24.ledger.ledger import Ledger, make_ledger
from onnx24.ledger.model_layers import layers_of
from onnx24.ledger.text import render_text

TARGET = targets.load("sm86-trt10")
SPARSE = ("w0", "w2", "w4", "w8")


def recorded(name: str) -> str:
    return str(RECORDED / name)


def whole(log: str, layers: str) -> Ledger:
    """With everything that a dense and a sparse build and their measurement leave."""
    return make_ledger(
        Engine.read(
            log=recorded(log),
            layers=recorded(layers),
            profile=recorded("sparse.profile.json"),
            times=recorded("sparse.times.json"),
        ),
        TARGET,
        model=net(SPARSE),
        model_name="net.onnx",
        dense=Engine.read(
            layers=recorded("dense.layers.json"),
            profile=recorded("dense.profile.json"),
            times=recorded("dense.times.json"),
        ),
    )


# --- counts ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("log", "counts"),
    [("trt-8.6.log", (4, 2)), ("trt-10.log", (5, 3)), ("trt-10.counts.log", (196, 140)),
     ("rtx-1.7.log", None)],
)  # fmt: skip
def test_the_last_pair_of_counts(log: str, counts: tuple[int, int] | None) -> None:
    ledger = make_ledger(Engine.read(log=recorded(log)), TARGET)
    assert ledger.counts == counts
    said = ledger.to_json()["counts"]["log"]
    assert said == (dict(zip(("eligible", "chosen"), counts, strict=True)) if counts else None)
    text = render_text(ledger)
    if counts:
        assert f"{counts[0]} layers eligible for sparse kernels, {counts[1]} chosen" in text
    else:
        assert "does not say which layers it runs sparse" in text


@pytest.mark.parametrize(
    ("log", "layers", "eligible", "chosen"),
    [
        ("trt-8.6.log", "trt-8.6.layers.json", 4, 2),
        ("trt-10.log", "trt-10.layers.json", 5, 3),
    ],
)
def test_rows_reproduce_the_counts(log: str, layers: str, eligible: int, chosen: int) -> None:
    """8.6 has no metadata: its nodes are read off the layers' names."""
    ledger = whole(log, layers)
    assert ledger.funnel["eligible_for_builder"] == eligible == ledger.counts[0]
    assert ledger.funnel["chosen"] == chosen == ledger.counts[1]
    assert [row.name for row in ledger.rows] == [
        "Conv_0", "Conv_2", "Conv_4", "MatMul_8", "Gemm_10",
    ]  # fmt: skip


# --- rows ------------------------------------------------------------------------------------
def test_a_row_says_it_all() -> None:
    ledger = whole("trt-10.log", "trt-10.layers.json")
    conv0, conv2, conv4, matmul, gemm = ledger.rows
    assert conv4.engine_layer == "Conv_4 + Add_5 + Relu_6"
    assert conv4.fused_with == ("Add_5", "Relu_6")
    assert "sparse" in conv2.tactic and conv2.chosen is True
    assert conv0.chosen is False and conv0.builder_eligible is True
    assert (conv0.reformats_before, conv0.reformats_after) == (1, 0)
    assert (conv2.reformats_before, conv2.reformats_after) == (0, 0)
    assert conv2.gain == pytest.approx(0.040 / 0.030) and conv2.verdict() == "faster"
    assert conv4.gain == pytest.approx(0.044 / 0.0435) and conv4.verdict() == "not faster"
    assert matmul.gain < 1 and matmul.verdict() == "not faster"
    assert gemm.layer is not None and gemm.layer.is_24 is False
    assert [row.layer.is_24 for row in ledger.rows if row.layer] == [True] * 4 + [False]
    assert ledger.funnel == {
        "layers": 5, "with_weight": 5, "eligible": 5, "weights_24": 4, "eligible_for_builder": 5,
        "chosen": 3, "faster": 1, "not_faster": 4, "not_measured": 0,
    }  # fmt: skip
    assert sum(ledger.shares_ms.values()) == pytest.approx(ledger.profiled_ms)
    assert ledger.shares_ms["rows"] == pytest.approx(sum(row.time_ms for row in ledger.rows))
    assert ledger.shares_ms["moves"] > 0


def test_work_and_sizes() -> None:
    layers, order = layers_of(net(), TARGET, {})
    assert order[:3] == ["Conv_0", "Relu_1", "Conv_2"] and len(order) == 9
    by_name = {layer.name: layer for layer in layers}
    assert by_name["Conv_0"].flops == 2 * 32 * 64 * 16
    assert by_name["MatMul_8"].flops == 2 * 64 * 32 * 16
    assert by_name["MatMul_8"].activation_bytes == 4 * (64 * 32 + 64 * 16)
    assert (by_name["Gemm_10"].k, by_name["Gemm_10"].n) == (16, 10)


def test_weights_that_no_tensor_holds_are_layers_too() -> None:
    """A sparse initializer has no values that could be judged, and its layer has a row."""
    proto = net().full_proto()
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w10"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    sparse = proto.graph.sparse_initializer.add(dims=[16, 10])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "w10"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.int64)))
    layers, _ = layers_of(Model.from_proto(proto), TARGET, {})
    gemm = next(layer for layer in layers if layer.name == "Gemm_10")
    assert gemm.shape == (16, 10) and gemm.is_24 is None and gemm.code == "O24-121"


def test_the_profile_binds_dynamic_sizes(fixture_models) -> None:
    model = Model.load(fixture_models["vit"].path)
    one, _ = layers_of(model, TARGET, {})
    eight, _ = layers_of(model, TARGET, {"image": Profile.static((8, 1, 8, 8))})
    assert [8 * layer.flops for layer in one] == [layer.flops for layer in eight]


def test_a_real_rtx_log_places_every_layer(fixture_models) -> None:
    ledger = make_ledger(
        Engine.read(log=recorded("rtx-1.7.log")),
        TARGET,
        model=Model.load(fixture_models["vit"].path),
        shapes={"image": Profile.static((8, 1, 8, 8))},
    )
    assert len(ledger.rows) == 18 and all(row.engine_layer for row in ledger.rows)
    scores = next(row for row in ledger.rows if row.name == "block0.scores")
    assert scores.layer.code == "O24-117" and scores.layer.weight == ""
    assert scores.layer.flops == 2 * 8 * 4 * 16 * 16 * 32 and scores.layer.k == 32
    up = next(row for row in ledger.rows if row.name == "block0.up.matmul")
    assert up.kind == "runtime_fusion" and "block0.up.matmul" not in up.fused_with
    query = next(row for row in ledger.rows if row.name == "block0.query.matmul")
    assert query.shares == 3, "query, key and value are one GEMM"
    assert all(row.chosen is None and row.time_ms is None for row in ledger.rows)
    assert ledger.engine_layers == 31 and ledger.reformats == 3


def test_without_a_model_the_engine_gives_the_rows() -> None:
    ledger = make_ledger(Engine.read(layers=recorded("trt-10.layers.json")), TARGET)
    assert [row.name for row in ledger.rows] == [
        "Conv_0 + Relu_1", "Conv_2", "Conv_4 + Add_5 + Relu_6", "MatMul_8", "Gemm_10",
    ]  # fmt: skip
    assert [row.chosen for row in ledger.rows] == [False, True, True, True, False]
    assert all(row.layer is None for row in ledger.rows)


def test_a_profile_alone() -> None:
    ledger = make_ledger(
        Engine.read(profile=recorded("sparse.profile.json")), TARGET, model=net(SPARSE)
    )
    assert [row.time_ms for row in ledger.rows] == [0.020, 0.030, 0.0435, 0.0125, 0.009]
    assert ledger.profiled_ms == pytest.approx(0.119)
    assert {row.verdict() for row in ledger.rows} == {"not measured"}
    assert any("no times of a dense engine" in note for note in ledger.notes)


def test_a_layer_that_is_in_no_engine_layer_is_said() -> None:
    engine = Engine(layers=[Layer(name="Conv_2", kind="CaskConvolution")])
    ledger = make_ledger(engine, TARGET, model=net())
    assert [bool(row.engine_layer) for row in ledger.rows] == [False, True, False, False, False]
    assert any("4 layers are in no layer of the engine" in note for note in ledger.notes)


# --- names -----------------------------------------------------------------------------------
ORDER = ["Conv_0", "Relu_1", "Add_2", "MatMul_3", "Erf_4", "MatMul_5", "out"]


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("Conv_0", ["Conv_0"]),
        ("Conv_0 + Relu_1", ["Conv_0", "Relu_1"]),
        ("PWN(Relu_1)", ["Relu_1"]),
        ("PWN(PWN(Relu_1), Add_2)", ["Relu_1", "Add_2"]),
        ("Conv_0 || MatMul_3", ["Conv_0", "MatMul_3"]),
        ("Conv_0 + PWN(Relu_1, Add_2)", ["Conv_0", "Relu_1", "Add_2"]),
        ("{ForeignNode[Add_2...MatMul_5]}", ["Add_2", "MatMul_3", "Erf_4", "MatMul_5"]),
        ("{ForeignNode[Conv_0 + Relu_1...MatMul_3]}", ["Conv_0", "Relu_1", "Add_2", "MatMul_3"]),
        ("{ForeignNode[elsewhere...MatMul_5]}", []),
        ("MatMul_3_U18+MatMul_5_U22_myl0_4", ["MatMul_3", "MatMul_5"]),
        ("node_of_out", ["out"]),
        ("__myl_AddResh_myl0_5", []),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_0", []),
    ],
)
def test_which_nodes_a_layer_holds(name: str, nodes: list[str]) -> None:
    assert nodes_of(Layer(name=name), ORDER) == nodes


def test_metadata_goes_before_the_name() -> None:
    layer = Layer(name="Conv_0", onnx_nodes=("MatMul_3", "node_of_out", "unknown"))
    assert nodes_of(layer, ORDER) == ["MatMul_3", "out"]


def test_reformats_by_tensor() -> None:
    gemm = Layer(name="g", reads=(Port("a", (4,), "fp16"),), writes=(Port("b", (4,), "fp16"),))
    before = Layer(name="__myl_Tran_myl0_1", kind="kgen", writes=(Port("a", (4,), "fp16"),))
    after = Layer(name="__myl_ReshCast_myl0_3", kind="kgen", reads=(Port("b", (4,), "fp16"),))
    other = Layer(name="__myl_AddResh_myl0_3", kind="kgen", reads=(Port("b", (4,), "fp16"),))
    assert Engine(layers=[before, gemm, after, other]).reformats(gemm) == (1, 1)


# --- what it looks like ------------------------------------------------------------------------
def test_text() -> None:
    text = render_text(whole("trt-8.6.log", "trt-8.6.layers.json"))
    assert all(len(line) <= 100 for line in text.splitlines())
    row = next(line for line in text.splitlines() if line.strip().startswith("Conv_2"))
    assert row.split()[:9] == [
        "Conv_2", "32×32×1×1", "0.1311", "yes", "yes", "yes", "0.03", "0.04", "1.33",
    ]  # fmt: skip
    assert "of 5 measured layers 1 are faster than dense by more than 3%" in text
    assert "latency 0.118" in text and "1.09x" in text


def test_overlapping_latencies_are_no_gain() -> None:
    same = Engine.read(times=recorded("dense.times.json"))
    ledger = make_ledger(same, TARGET, dense=same)
    assert "the spreads overlap: no difference shown" in render_text(ledger)
    assert "x (" not in render_text(ledger)


def test_html_is_one_file_with_a_plot() -> None:
    page = render_html(whole("trt-10.log", "trt-10.layers.json"))
    assert page.startswith("<!DOCTYPE html>") and "<svg" in page and page.count("<rect") == 10
    for word in ("http://", "https://", "<link", "src="):
        assert word not in page
    assert "sparse kernel, not faster" in page and "Conv_4" in page
    assert page == render_html(whole("trt-10.log", "trt-10.layers.json"))


def test_html_without_times_plots_the_work() -> None:
    page = render_html(make_ledger(Engine.read(log=recorded("trt-10.log")), TARGET, model=net()))
    assert "work of each layer [MFLOP]" in page and page.count("<rect") == 5


@pytest.mark.parametrize("release", ["trt-8.6", "trt-10"])
def test_html_of_files_alone_plots_the_traffic(release: str) -> None:
    """--log, --layers and --times, without a model: run times are of the whole engine."""
    files = {"log": f"{release}.log", "layers": f"{release}.layers.json"}
    files["times"] = "sparse.times.json"
    ledger = make_ledger(Engine.read(**{k: recorded(v) for k, v in files.items()}), TARGET)
    page = render_html(ledger)
    assert "traffic of each layer [kB]" in page and page.count("<rect") == len(ledger.rows)
    assert "no layer was timed" in page and "over 40 runs" in page


def test_names_are_escaped() -> None:
    engine = Engine(layers=[Layer(name="<b>&", kind="gemm")])
    page = render_html(make_ledger(engine, TARGET, model_name="<i>"))
    assert "<b>&" not in page and "<i>" not in page and "&lt;b&gt;&amp;" in page


# --- files of another form ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("layers", "{}", "no list 'Layers'"),
        ("layers", "no json", "no layer information"),
        ("profile", "{}", "expected a list"),
        ("profile", "[]", "no layer of it has a name"),
        ("profile", '[{"name": "a", "medianMs": "x"}]', "has no time"),
        ("times", "[]", "no run"),
        ("times", '[{"latencyMs": 1}]', "no computeMs"),
        ("times", "[1", "no JSON"),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, option: str, text: str, says: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        Engine.read(**{option: str(tmp_path / "f")})
    assert caught.value.code == "O24-048" and caught.value.exit_code == 2


def test_a_missing_file() -> None:
    with pytest.raises(InputError, match="No such file") as caught:
        Engine.read(log="nowhere.log")
    assert caught.value.code == "O24-048"


def test_json_is_json() -> None:
    document = whole("trt-10.log", "trt-10.layers.json").to_json()
    assert json.loads(json.dumps(document)) == document
    assert document["rows"][1]["model"]["weight"] == "w2"
