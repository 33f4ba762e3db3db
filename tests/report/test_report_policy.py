"""Policy files: every key, their refusal, presets, inheritance, the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onnx24.errors import InputError
from onnx24.report.policy import (
    _TOP,
    BUILT_IN,
    KEYS,
    SEVERITIES,
    Policy,
    json_schema,
    parse_policy,
    presets,
    read_policy,
)

ROOT = Path(__file__).resolve().parents[2]
_EXAMPLES: dict[str, Any] = {
    "share": 0.75,
    "number": 2.5,
    "count": 7,
    "seconds": 2.5,
    "flag": True,
    "text": "some",
    "path": "file.json",
    "names": ["a", "b.*"],
    "texts": {"key": "pattern*"},
    "numbers": {"engine.median_ms": 4.5},
    "severity": "warning",
    "dims": "batch",
}


def written(folder: Path, text: str) -> str:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def everything() -> str:
    """A policy that says something under every key."""
    lines = ['target = "sm86-trt10"', 'fail_on = "warning"', '[severity]\n"O24-611" = "note"']
    for section, keys in KEYS.items():
        lines += [f"[{section}]"]
        lines += [f"{name} = {toml(_EXAMPLES[key.kind])}" for name, key in keys.items()]
    return "\n".join(lines)


def test_every_key_is_read(tmp_path: Path) -> None:
    policy = read_policy(written(tmp_path, everything()))
    for section, keys in KEYS.items():
        for name, key in keys.items():
            assert policy.get(f"{section}.{name}") == _EXAMPLES[key.kind], f"{section}.{name}"
            if key.kind == "path":
                assert policy.path(f"{section}.{name}") == tmp_path / "file.json"
    assert (policy.target, policy.fail_on) == ("sm86-trt10", "warning")
    assert policy.severity == {"O24-611": "note"}
    assert policy.runs_models


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sparsty]\n", "did you mean 'sparsity'"),
        ("[sparsity]\nmin_covrage = 1\n", "did you mean 'min_coverage'"),
        ("[sparsity]\nmin_coverage = 1.5\n", "a share from 0 to 1"),
        ('[sparsity]\nmin_coverage = "0.5"\n', "a share from 0 to 1"),
        ("[sparsity]\nclaims = 1\n", "expected true or false"),
        ("[model]\nmax_opset = true\n", "expected an integer"),
        ("[model]\nmax_bytes = -1\n", "no negative one"),
        ('[qdq]\nzero-point = "fatal"\n', "one of error, warning, note, off"),
        ("[qdq]\nzero_point = 'off'\n", "did you mean 'zero-point'"),
        ('[model]\ndynamic_dims = "some"\n', "one of any, batch, none"),
        ('[operators]\nallow = "Conv"\n', "a list of strings"),
        ('[latency]\nledger = "l.json"\nmax = {a = "fast"}\n', "a table of numbers"),
        ("[severity]\n'O24-612345' = 'off'\n", "there is no code"),
        ("[severity]\n'O24-611' = 'no'\n", "one of error, warning, note, off"),
        ("fail_on = 'note'\n", "expected error or warning"),
        ("sparsity = 3\n", "expected a table"),
        ("[sparsity\n", "is no TOML"),
        ("[numeric]\ncosine = 0.9\n", "numeric.data is missing"),
        ("[numeric]\ncosine = 0.9\ndata = 'd.npz'\n", "numeric.reference is missing"),
        ("[numeric]\nreference = 'a.onnx'\ndata = 'd.npz'\n", "[numeric] has no limit"),
        ("[task]\ndata = 'd.npz'\n", "[task] has no limit"),
        ("[task]\ndata = 'd.npz'\naccuracy = 1\nmax_drop = 0\n", "task.reference is missing"),
        ("[latency]\nsame_model = true\n", "latency.ledger is missing"),
        ("[backend]\ntimeout = 3\n", "backend.build is missing"),
        ("extends = 'sparse-int9'\n", "cannot be read"),
        ("extends = 3\n", "expected a string"),
        ("extends = 'policy.toml'\n", "extends itself"),
    ],
)
def test_what_no_rule_knows_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_policy(written(tmp_path, text))
    assert caught.value.code == "O24-044"
    assert says in str(caught.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_policy(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="did you mean 'sparse-int8'"):
        read_policy("sparse_int8")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no TOML"):
        read_policy(str(tmp_path / "binary.toml"))


def test_the_presets_are_policies() -> None:
    assert set(presets()) == {"tensorrt-importable", "sparse-int8", "registry-strict"}
    assert read_policy("sparse-int8").get("qdq.zero-point") == "error"
    strict = read_policy("registry-strict")
    assert strict.get("operators.domains") == ["ai.onnx"]
    assert "QLinearConv" in strict.get("operators.deny")
    assert (strict.fail_on, strict.get("provenance.required")) == ("warning", True)


def test_a_policy_adds_to_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "base.toml").write_text(
        "[sparsity]\nmin_coverage = 0.5\nclaims = true\n[latency]\nledger = 'l.json'\n"
        "[severity]\n'O24-611' = 'warning'\n"
    )
    path = written(tmp_path, "extends = 'team/base.toml'\n[sparsity]\nmin_coverage = 0.9\n")
    policy = read_policy(path)
    assert (policy.get("sparsity.min_coverage"), policy.get("sparsity.claims")) == (0.9, True)
    assert policy.path("latency.ledger") == tmp_path / "team" / "l.json"
    assert policy.severity == {"O24-611": "warning"} and policy.name == path


def test_the_digest_is_that_of_the_rules() -> None:
    one = parse_policy("[model]\nmax_opset = 17\nmin_opset = 9\n", "a")
    two = parse_policy("# a comment\n[model]\nmin_opset = 9\nmax_opset = 17\n", "b")
    assert one.digest() == two.digest()
    assert one.digest() != parse_policy("[model]\nmax_opset = 17\n", "a").digest()
    assert BUILT_IN.digest() == Policy(name="x", values=dict(BUILT_IN.values)).digest()


def test_the_published_schema_is_that_of_the_code() -> None:
    published = ROOT / "docs" / "policy.schema.json"
    fresh = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert published.read_text(encoding="utf-8") == fresh, (
        'write it anew: python -c "import json; from onnx24.report.policy import json_schema; '
        'print(json.dumps(json_schema(), indent=2, ensure_ascii=False))" > docs/policy.schema.json'
    )


def _document(text: str) -> Any:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def test_the_schema_takes_the_presets_and_a_policy_with_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    for text in (everything(), *presets().values()):
        validator.validate(_document(text))
    for text in ("[sparsty]\n", "[sparsity]\nmin_coverage = 2\n", "[qdq]\nbias = 'bad'\n"):
        assert list(validator.iter_errors(_document(text)))


def test_the_manual_names_every_key() -> None:
    manual = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    missing = [
        f"{section}.{name}"
        for section, keys in KEYS.items()
        for name in keys
        if f"`{name}`" not in manual
    ]
    missing += [name for name in _TOP if f"`{name}`" not in manual]
    missing += [name for name in presets() if f"`{name}`" not in manual]
    assert not missing and all(severity in manual for severity in SEVERITIES)
