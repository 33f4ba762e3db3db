import json
import os
from importlib.resources import files
from pathlib import Path

import pytest

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.targets import Target

DOCS = Path(__file__).parents[2] / "docs" / "targets.md"


def test_default_and_short_name_are_the_same_target():
    assert targets.load("sm86") == targets.load(targets.DEFAULT)
    assert targets.load("sm86").name == "sm86-trt10"
    assert targets.load("sm86").compute_capability == "8.6"
    assert targets.load("sm120").compute_capability == "12.0"
    assert targets.load("sm100").compute_capability == "10.0"


def test_every_architecture_has_every_release_that_supports_it():
    have = set(targets.names())
    for sm in (75, 80, 86, 87, 89, 90, 100, 120):
        assert {f"sm{sm}-trt10", f"sm{sm}-trt11"} <= have
    for sm in (75, 80, 86, 87, 89, 90):
        assert f"sm{sm}-trt8" in have
    # TensorRT 8 and 9 predate Blackwell; TensorRT-RTX has no value for 87, 90 and 100.
    assert not have & {"sm100-trt8", "sm120-trt8", "sm100-trt9", "sm120-trt9"}
    assert {n for n in have if n.endswith("rtx1")} == {
        f"sm{sm}-rtx1" for sm in (75, 80, 86, 89, 120)
    }
    assert targets.load("sm86-rtx1").trt_major is None
    assert targets.load("sm86-trt11").trt_major == 11


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("sm86_trt10", "sm86-trt10"),
        ("sm8", "sm80|sm86|sm87|sm89"),
        ("sm87-rtx1", "sm80-rtx1|sm86-rtx1|sm89-rtx1"),
    ],
)
def test_unknown_target_names_the_nearest(wrong, near):
    with pytest.raises(InputError) as caught:
        targets.load(wrong)
    assert caught.value.code == "O24-025"
    assert caught.value.exit_code == 2
    assert any(repr(n) in str(caught.value) for n in near.split("|"))


def test_unknown_target_far_from_every_name_still_says_what_to_do():
    with pytest.raises(InputError, match="onnx24 targets"):
        targets.load("potato")


@pytest.mark.parametrize("name", targets.names())
def test_row_is_sourced_and_consistent(name):
    t = targets.load(name)
    assert t.source and all(t.source)
    assert t.checked.year >= 2026
    known = set(Target.__dataclass_fields__) | {"supported"}
    assert t.unconfirmed <= known, "an unconfirmed entry that names no field has no effect"
    assert not t.sparse_dtypes & t.sparse_dtypes_unconfirmed
    assert t.opset_min <= t.opset_max
    # Facts of tensorrt-facts §0 and §3, release by release.
    assert t.conv1x1 == (t.trt in ("8", "9"))
    assert t.int8_initializers == (t.trt not in ("8", "9"))
    assert t.strongly_typed == (t.trt != "8")
    assert (t.sm == 75) == (not t.sparse_dtypes)
    if t.sm < 89:
        assert not t.fp8 and t.confirmed("fp8")


@pytest.mark.parametrize("sm", [90, 100, 120])
def test_sparsity_without_evidence_is_marked(sm):
    assert not targets.load(f"sm{sm}").confirmed("sparse_dtypes")


def test_sparsity_with_evidence_is_not_marked():
    for sm in (80, 86, 87, 89):
        assert targets.load(f"sm{sm}").confirmed("sparse_dtypes")
    assert not targets.load("sm86-rtx1").confirmed("sparse_dtypes")


def test_a_release_cannot_give_what_the_silicon_lacks():
    assert targets.load("sm89-trt10").fp8
    assert not targets.load("sm86-trt10").fp8  # release yes, silicon no
    assert not targets.load("sm89-trt8").fp8  # silicon yes, release no


def test_rows_reject_an_override_of_nothing():
    text = files("onnx24.targets").joinpath("targets.toml").read_text("utf-8")
    data = targets.tomllib.loads(text)
    data["override"]["sm100-trt8"] = {"source": ["x"], "checked": data["sm"]["80"]["checked"]}
    with pytest.raises(ValueError, match="sm100-trt8"):
        list(targets._join(data))


def test_json_form_is_plain_data():
    out = json.loads(json.dumps(targets.load("sm90").to_json()))
    assert out["compute_capability"] == "9.0"
    assert "sparse_dtypes" in out["unconfirmed"]
    assert out["checked"].startswith("20")


def test_presets_are_the_agreed_pipelines_and_a_copy():
    first = targets.presets()
    assert set(first) == {
        "bf16", "fp16", "int8", "int8-fp16", "sparse", "sparse-fp16", "sparse-int8",
        "sparse-int8-fp16",
    }  # fmt: skip
    assert "upgrade-opset{to=13 to16=19},smooth-quant,prune24" in first["sparse-int8"]
    first["int8"] = "broken"
    assert targets.presets()["int8"] != "broken"


def test_docs_table_is_up_to_date():
    """Set ONNX24_BLESS=1 to write docs/targets.md from the rows."""
    if os.environ.get("ONNX24_BLESS"):
        DOCS.write_text(targets.render_docs(), encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == targets.render_docs(), (
        "docs/targets.md is stale; run this test with ONNX24_BLESS=1"
    )


def test_docs_mark_what_is_unconfirmed():
    text = targets.render_docs()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) == set(targets.names())
    assert "fp16, int8 ?" in rows["sm90-trt10"]
    assert "fp16, int8 ?" not in rows["sm86-trt10"]
    assert rows["sm87-trt11"].startswith("| `sm87-trt11` ?")
