"""The first policy file: its keys, their refusal, and what is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx24.diagnostics import diagnostic
from onnx24.errors import InputError
from onnx24.report.policy import BUILT_IN, Facts, Policy, findings, read_policy


def facts(**changes: object) -> Facts:
    values: dict[str, object] = {
        "file": "m.onnx",
        "opset": 17,
        "nbytes": 1000,
        "eligible_elements": 100,
        "sparse_elements": 80,
        "broken_claims": (),
        "problems": (),
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def written(folder: Path, text: str) -> str:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_key_is_read(tmp_path: Path) -> None:
    text = (
        "[sparsity]\nmin_coverage = 0.75\nclaims = true\n"
        "[model]\nmin_opset = 13\nmax_opset = 18\nmax_bytes = 2000\n"
    )
    path = written(tmp_path, text)
    assert read_policy(path) == Policy(
        name=path, min_coverage=0.75, claims=True, min_opset=13, max_opset=18, max_bytes=2000
    )
    assert findings(read_policy(path), facts()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sparsty]\n", "did you mean 'sparsity'"),
        ("[sparsity]\nmin_covrage = 1\n", "did you mean 'min_coverage'"),
        ("[sparsity]\nmin_coverage = 1.5\n", "a share from 0 to 1"),
        ('[sparsity]\nmin_coverage = "0.5"\n', "expected a number"),
        ("[sparsity]\nclaims = 1\n", "expected true or false"),
        ("[model]\nmax_opset = true\n", "expected an integer"),
        ("[model]\nmax_bytes = -1\n", "no negative number"),
        ("sparsity = 3\n", "expected a table"),
        ("[sparsity\n", "is no TOML"),
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
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no TOML"):
        read_policy(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize(
    ("policy", "changes", "codes"),
    [
        (Policy(name="p"), {}, []),
        (Policy(name="p", min_coverage=0.8), {}, []),
        (Policy(name="p", min_coverage=0.81), {}, ["O24-611"]),
        (Policy(name="p", min_coverage=0.0), {"eligible_elements": 0, "sparse_elements": 0}, []),
        (
            Policy(name="p", min_coverage=0.1),
            {"eligible_elements": 0, "sparse_elements": 0},
            ["O24-611"],
        ),
        (Policy(name="p", min_opset=18), {}, ["O24-620"]),
        (Policy(name="p", max_opset=16, max_bytes=999), {}, ["O24-620", "O24-620"]),
        (BUILT_IN, {}, ["O24-611"]),
        (BUILT_IN, {"sparse_elements": 100}, []),
    ],
)
def test_findings(policy: Policy, changes: dict[str, object], codes: list[str]) -> None:
    assert [d.code for d in findings(policy, facts(**changes))] == codes


def test_broken_claims_count_where_asked_and_invalid_models_always() -> None:
    broken = (diagnostic("O24-807", "not 2:4"),)
    assert findings(Policy(name="p"), facts(broken_claims=broken)) == []
    assert findings(Policy(name="p", claims=True), facts(broken_claims=broken)) == list(broken)
    invalid = (diagnostic("O24-800", "the checker refuses"),)
    assert findings(Policy(name="p"), facts(problems=invalid)) == list(invalid)
