"""Signatures hold for one model, as it is, and for one key."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import onnx24
from onnx24.cli.app import run
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr.provenance import SIGNATURE_KEY
from onnx24.testing.generate import external_mlp, mlp

PEM, RAW, PLAIN = forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()


def _write(key, name: str, encryption=PLAIN) -> bytes:
    Path(f"{name}.pem").write_bytes(key.private_bytes(PEM, RAW, encryption))
    public = key.public_key().public_bytes(PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    Path(f"{name}.pub").write_bytes(public)
    return public


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed model, the keys of two people, and a policy that trusts the first."""
    monkeypatch.chdir(tmp_path)
    _write(ed25519.Ed25519PrivateKey.generate(), "ann")
    _write(ed25519.Ed25519PrivateKey.generate(), "bob")
    Path("p.toml").write_text('[provenance]\nsigned_by = "ann.pub"\n')
    onnx24.prune24(mlp([16, 8]), output="m.onnx")
    assert run(["sign", "m.onnx", "--key", "ann.pem", "-o", "signed.onnx"]) == 0
    return Path("signed.onnx")


def _checked(name: str | Path, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = run(["check", str(name), "--policy", "p.toml"])
    return code, capsys.readouterr().out


def test_a_policy_requires_it(signed: Path, capsys) -> None:
    assert _checked(signed, capsys)[0] == 0
    code, said = _checked("m.onnx", capsys)
    assert code == 1 and "O24-629" in said and "signed by nobody" in said
    onnx24.sign("m.onnx", "bob.pem", output="bobs.onnx")
    assert "no key of" in _checked("bobs.onnx", capsys)[1]
    Path("p.toml").write_text('[provenance]\nsigned_by = "both.pub"\nrequired = true\n')
    Path("both.pub").write_bytes(Path("ann.pub").read_bytes() + Path("bob.pub").read_bytes())
    assert _checked("bobs.onnx", capsys)[0] == _checked(signed, capsys)[0] == 0


def _of_another_model(proto: onnx.ModelProto) -> onnx.ModelProto:
    other = mlp([16, 8], seed=1)
    other.metadata_props.extend(proto.metadata_props)
    return other


def _weight(proto: onnx.ModelProto) -> onnx.ModelProto:
    values = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    values[0, 0] = np.nextafter(values[0, 0], np.float32(9))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "fc0.weight"))
    return proto


def _entry(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.metadata_props.add(key="author", value="somebody else")
    return proto


def _key(proto: onnx.ModelProto) -> onnx.ModelProto:
    (entry,) = (e for e in proto.metadata_props if e.key == SIGNATURE_KEY)
    entry.value = entry.value.replace("ed25519", "ed448")
    return proto


@pytest.mark.parametrize("edit", [_of_another_model, _weight, _entry, _key])
def test_it_holds_for_nothing_else(signed: Path, capsys, edit) -> None:
    Path("edited.onnx").write_bytes(edit(onnx.load(signed)).SerializeToString())
    code, said = _checked("edited.onnx", capsys)
    assert code == 1 and "O24-629" in said
    assert run(["verify-provenance", "edited.onnx", "--signed-by", "ann.pub"]) == 1


def test_it_covers_data_files_and_moves_with_the_values(signed: Path, capsys) -> None:
    model = external_mlp(Path(), 1 << 16, width=64)
    onnx24.sign(model, "ann.pem", output="big.onnx")
    assert Path("big.onnx.data").exists() and _checked("big.onnx", capsys)[0] == 0
    Model.load("big.onnx").save("whole.onnx", external="embed")
    assert _checked("whole.onnx", capsys)[0] == 0
    with open("big.onnx.data", "r+b") as file:
        file.write(b"\x01")
    assert "it is not what" in _checked("big.onnx", capsys)[1]


def test_a_pass_that_changes_it_drops_it(signed: Path) -> None:
    assert SIGNATURE_KEY in Model.load(signed).metadata
    onnx24.optimize(str(signed), "cast16", output="half.onnx")
    assert SIGNATURE_KEY not in Model.load("half.onnx").metadata


def test_keys_that_are_none(signed: Path, capsys) -> None:
    _write(ec.generate_private_key(ec.SECP256R1()), "curve")
    locked = forms.BestAvailableEncryption(b"secret")
    _write(ed25519.Ed25519PrivateKey.generate(), "locked", locked)
    Path("empty.pem").touch()
    for name in ("curve", "locked", "empty", "missing"):
        with pytest.raises(InputError, match="O24-645"):
            onnx24.sign(str(signed), f"{name}.pem")
    for name in ("curve.pub", "empty.pem", "ann.pem", "missing.pub"):
        Path("p.toml").write_text(f'[provenance]\nsigned_by = "{name}"\n')
        capsys.readouterr()
        assert run(["check", str(signed), "--policy", "p.toml", "--format", "json"]) == 2, name
        assert "O24-645" in json.dumps(capsys.readouterr().out), name


def test_keys_as_openssh_writes_them(signed: Path, capsys) -> None:
    key = forms.load_pem_private_key(Path("ann.pem").read_bytes(), None)
    text = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    Path("ann.pub").write_bytes(b"# Ann\n" + text + b" ann@example.com\n")
    assert _checked(signed, capsys)[0] == 0
