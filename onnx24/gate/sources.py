"""From what a user names to model files: paths, patterns, folders, an OCI image layout.

An OCI layout keeps files under their digests, in a folder of their own. So that a model finds its
data files, and only its own, they are put side by side in a temporary folder, as hard links where
the file system allows. (A Hugging Face cache has links, which `ir.weights` follows.)

*Source:* OCI image layout 1.0 (`oci-layout`, `index.json`, `blobs/sha256/…`; ORAS names a file in
the annotation `org.opencontainers.image.title`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from onnx24.errors import InputError

_TITLE = "org.opencontainers.image.title"
_UNPACK = "io.deis.oras.content.unpack"
"""A layer that is a packed folder; none of its files is titled."""
_MAX_JSON_BYTES = 4 << 20
_MAX_MANIFESTS = 256


class ModelFile(NamedTuple):
    """`path`: where it is read; `name`: what reports call it."""

    path: str
    name: str


class Sources:
    """The model files behind some arguments. Use as a context manager: leaving it removes what
    was put together."""

    def __init__(self, arguments: Iterable[str]) -> None:
        self._arguments = list(arguments)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> list[ModelFile]:
        """Raises: InputError O24-045 where an argument leads to no model."""
        try:
            files = [file for argument in self._arguments for file in self._expand(argument)]
        except BaseException:
            self.__exit__()
            raise
        return list(dict.fromkeys(files))

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _expand(self, argument: str) -> Iterator[ModelFile]:
        if os.path.isdir(argument):
            yield from self._folder_files(argument)
        elif os.path.exists(argument) or not glob.has_magic(argument):
            yield from self._file(argument)
        else:
            found = sorted(glob.glob(argument, recursive=True))
            if not found:
                raise InputError.of("O24-045", f"nothing matches {argument!r}")
            for path in found:
                if os.path.isfile(path):
                    yield from self._file(path)

    def _folder_files(self, folder: str) -> Iterator[ModelFile]:
        if os.path.isfile(os.path.join(folder, "oci-layout")):
            yield from self._oci(Path(folder))
            return
        found = [
            os.path.join(root, name)
            for root, folders, names in os.walk(folder)
            if _visible(folders)
            for name in names
            if name.endswith(".onnx")
        ]
        if not found:
            raise InputError.of("O24-045", "no *.onnx is in the folder", file=folder)
        for path in sorted(found):
            yield from self._file(path)

    def _file(self, path: str) -> Iterator[ModelFile]:
        yield ModelFile(path, path)

    # --- an OCI image layout ---------------------------------------------------------------
    def _oci(self, layout: Path) -> Iterator[ModelFile]:
        found = []
        for manifest in _manifests(layout):
            target = self._new_folder()
            for layer in _objects(manifest.get("layers")):
                given = layer.get("annotations")
                said = given if isinstance(given, dict) else {}
                title = str(said.get(_TITLE, ""))
                if not title or "\0" in title or said.get(_UNPACK):
                    continue
                name = PurePosixPath(title)
                if name.is_absolute() or ".." in name.parts:
                    raise _bad_layout(layout, f"the title {title!r} leads out of the folder")
                _link(_blob(layout, layer), target / name)
                if name.suffix == ".onnx":
                    found.append(ModelFile(str(target / name), f"{layout}@{title}"))
        if not found:
            raise _bad_layout(layout, "no layer is titled *.onnx")
        yield from sorted(found, key=lambda file: file.name)

    def _new_folder(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnx24-")
        return Path(tempfile.mkdtemp(dir=self._folder.name))


def _visible(folders: list[str]) -> bool:
    """Keep os.walk out of hidden folders such as .git; always true."""
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    return True


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _manifests(layout: Path) -> Iterator[Mapping[str, Any]]:
    """Every image manifest of the layout; indexes in indexes are followed."""
    pending = [_json(layout, layout / "index.json")]
    seen = 0
    while pending:
        document = pending.pop()
        entries = document.get("manifests")
        if not isinstance(entries, list):
            yield document
            continue
        for entry in _objects(entries):
            seen += 1
            if seen > _MAX_MANIFESTS:
                raise _bad_layout(layout, f"more than {_MAX_MANIFESTS} manifests")
            pending.append(_json(layout, _blob(layout, entry)))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a JSON list; nothing for what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _json(layout: Path, path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise _bad_layout(layout, f"{path.name} has more than {_MAX_JSON_BYTES} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise _bad_layout(layout, f"{path.name}: {err}") from err
    if not isinstance(document, dict):
        raise _bad_layout(layout, f"{path.name} is no JSON object")
    return document


def _blob(layout: Path, entry: Mapping[str, Any]) -> Path:
    """The file of a descriptor, whose content has the digest that it says."""
    algorithm, _, digest = str(entry.get("digest", "")).partition(":")
    if algorithm != "sha256" or len(digest) != 64 or not digest.isalnum():
        raise _bad_layout(layout, f"digest {entry.get('digest')!r}, expected sha256:…")
    path = layout / "blobs" / "sha256" / digest
    if path.is_symlink() or not path.is_file():
        raise _bad_layout(layout, f"the blob {digest} is missing")
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    if found.hexdigest() != digest:
        raise _bad_layout(layout, f"the blob {digest} holds other bytes than its name says")
    return path


def _bad_layout(layout: Path, why: str) -> InputError:
    return InputError.of("O24-045", f"OCI layout: {why}", file=str(layout))
