"""What a user names, and which model files that is."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from gate_support import codes, sparse_mlp

from onnx24.errors import InputError
from onnx24.gate.judge import judge
from onnx24.gate.sources import Sources
from onnx24.report.policy import BUILT_IN


def names(*arguments: str | Path) -> list[str]:
    with Sources(map(str, arguments)) as files:
        return [file.name for file in files]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.onnx", "sub/b.onnx", "sub/deep/c.onnx", "sub/notes.txt", ".git/d.onnx"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_paths_patterns_and_folders(tree: Path) -> None:
    a, b, c = (str(tree / name) for name in ("a.onnx", "sub/b.onnx", "sub/deep/c.onnx"))
    assert names(a) == [a]
    assert names(tree) == [a, b, c]
    assert names(tree / "**" / "*.onnx") == [a, b, c]
    assert names(tree / "sub" / "*.onnx", b) == [b], "a file that is named twice is checked once"
    assert names("missing.onnx") == ["missing.onnx"], "checking it says that it is missing"
    for nothing in (tree / "*.pt", tree / "sub" / "empty"):
        (tree / "sub" / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError) as caught:
            names(nothing)
        assert caught.value.code == "O24-045"


def test_what_a_folder_holds_is_judged_or_named(tree: Path) -> None:
    (tree / "sub" / "UPPER.ONNX").write_bytes(b"x")
    (tree / "elsewhere").symlink_to(tree / "sub", target_is_directory=True)
    (tree / "link.onnx").symlink_to(tree / "a.onnx")
    sources = Sources([str(tree)])
    with sources as files:
        found = [Path(file.name).name for file in files]
    assert sorted(found) == ["UPPER.ONNX", "a.onnx", "b.onnx", "c.onnx", "link.onnx"]
    assert sorted(sources.passed_over) == [
        f"{tree}/.git: a hidden folder with 1 model file",
        f"{tree}/elsewhere: a link to a folder",
    ]
    (tree / "elsewhere").unlink()
    with Sources([str(tree)], everything=True) as files:
        assert "d.onnx" in {Path(file.name).name for file in files}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tree: Path) -> None:
    (tree / "sub" / "deep").chmod(0)
    with pytest.raises(InputError, match="can't be read"):
        names(tree)


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "m[1].onnx"
    path.write_bytes(b"x")
    assert names(path) == [str(path)]


# --- OCI --------------------------------------------------------------------------------------


def blob(layout: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    path = layout / "blobs" / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {
        "mediaType": "application/octet-stream",
        "digest": f"sha256:{digest}",
        "size": len(data),
    }


def oci(layout: Path, files: dict[str, bytes]) -> Path:
    """A layout with one manifest, as `oras copy --to-oci-layout` leaves it."""
    layers = [
        {**blob(layout, data), "annotations": {"org.opencontainers.image.title": title}}
        for title, data in files.items()
    ]
    manifest = {"schemaVersion": 2, "config": blob(layout, b"{}"), "layers": layers}
    index = {"schemaVersion": 2, "manifests": [blob(layout, json.dumps(manifest).encode())]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout


def external_model(folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    onnx.save(sparse_mlp(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    return {"m.onnx": path.read_bytes(), "m.data": (folder / "m.data").read_bytes()}


def test_an_oci_layout_with_a_data_file(tmp_path: Path) -> None:
    layout = oci(tmp_path / "layout", external_model(tmp_path / "made"))
    with Sources([str(layout)]) as files:
        assert [file.name for file in files] == [f"{layout}@m.onnx"]
        result = judge(files[0].path, BUILT_IN, target="sm86-trt10", name=files[0].name)
        assert (result.exit_code, codes(result), result.file) == (0, [], f"{layout}@m.onnx")
        held = Path(files[0].path)
    assert not held.exists()


def test_an_index_in_an_index(tmp_path: Path) -> None:
    layout = oci(tmp_path / "layout", {"m.onnx": sparse_mlp().SerializeToString()})
    inner = blob(layout, (layout / "index.json").read_bytes())
    (layout / "index.json").write_text(json.dumps({"manifests": [inner]}))
    assert names(layout) == [f"{layout}@m.onnx"]


def test_layouts_that_lie_are_refused(tmp_path: Path) -> None:
    def says(layout: Path) -> str:
        with pytest.raises(InputError) as caught:
            names(layout)
        assert caught.value.code == "O24-045"
        return str(caught.value)

    assert "leads out" in says(oci(tmp_path / "a", {"../m.onnx": b"x"}))
    assert "leads out" in says(oci(tmp_path / "b", {"/m.onnx": b"x"}))
    assert "no layer" in says(oci(tmp_path / "c", {"m.txt": b"x"}))
    changed = oci(tmp_path / "d", {"m.onnx": b"x"})
    digest = hashlib.sha256(b"x").hexdigest()
    (changed / "blobs" / "sha256" / digest).write_bytes(b"y")
    assert "other bytes" in says(changed)
    broken = oci(tmp_path / "e", {"m.onnx": b"x"})
    (broken / "index.json").write_text("{")
    assert "index.json" in says(broken)
    loop = oci(tmp_path / "f", {"m.onnx": b"x"})
    (loop / "index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:../../x"}]}))
    assert "digest" in says(loop)
    odd = oci(tmp_path / "g", {"m.onnx": b"x"})
    for index in (
        {"manifests": [1, "x", None]},
        {"layers": "all of them"},
        {"layers": [7, {"annotations": []}, {"annotations": None}]},
    ):
        (odd / "index.json").write_text(json.dumps(index))
        assert "no layer" in says(odd)


# --- Hugging Face -----------------------------------------------------------------------------


def test_a_snapshot_in_a_hugging_face_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc" / "onnx"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, data in external_model(tmp_path / "made").items():
        digest = hashlib.sha256(data).hexdigest()
        (repository / "blobs" / digest).write_bytes(data)
        (snapshot / name).symlink_to(f"../../../blobs/{digest}")
    with Sources([str(repository / "snapshots" / "0123abc")]) as files:
        assert [file.name for file in files] == [str(snapshot / "m.onnx")]
        result = judge(files[0].path, BUILT_IN, target="sm86-trt10", name=files[0].name)
    assert (result.exit_code, codes(result)) == (0, [])


def test_a_plain_repository_folder(tmp_path: Path) -> None:
    external_model(tmp_path / "repo")
    (tmp_path / "repo" / "config.json").write_text("{}")
    assert names(tmp_path / "repo") == [str(tmp_path / "repo" / "m.onnx")]
