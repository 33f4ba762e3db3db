"""From what a user names to model files: paths, patterns, folders, an OCI image layout.

An OCI layout keeps files under their digests, in a folder of their own. So that a model finds its
data files, and only its own, they are put side by side in a temporary folder, as hard links where
the file system allows. (A Hugging Face cache has links, which `ir.weights` follows.)

In a folder every file is judged whose name ends in `.onnx`, in letters of either case; a link to a
file counts as that file. Not looked into are hidden folders and links to folders: what they hold is
counted and named (`Sources.passed_over`). A folder that can't be read is an error.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from onnx24.errors import InputError
from onnx24.ir.inputs import regular

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
    was put together.

    everything: hidden folders are looked into as well, and a link to a folder is an error.
    passed_over: what was not judged, in words, once it has been entered.
    """

    def __init__(self, arguments: Iterable[str], *, everything: bool = False) -> None:
        self._arguments = list(arguments)
        self._everything = everything
        self.passed_over: list[str] = []
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
        found = sorted(self._walk(folder))
        if not found:
            said = "; ".join(["no *.onnx is in the folder", *self.passed_over])
            raise InputError.of("O24-045", said, file=folder)
        for path in found:
            yield from self._file(path)

    def _walk(self, folder: str) -> Iterator[str]:
        """The model files in a folder. Raises: InputError O24-045 for one that can't be read."""

        def unreadable(err: OSError) -> None:
            why = f"a folder can't be read: {err.strerror}"
            raise InputError.of("O24-045", why, file=str(err.filename)) from err

        for root, folders, names in os.walk(folder, onerror=unreadable):
            linked = [name for name in folders if os.path.islink(os.path.join(root, name))]
            hidden = [n for n in folders if n.startswith(".") and n not in linked]
            for name in linked:
                path = os.path.join(root, name)
                if self._everything:
                    raise InputError.of("O24-045", "a link to a folder is not followed", file=path)
                self.passed_over.append(f"{path}: a link to a folder")
            if self._everything:
                hidden = []
            for name in hidden:
                path = os.path.join(root, name)
                count = sum(map(_is_model, _names_in(path, unreadable)))
                if count:
                    files = "file" if count == 1 else "files"
                    self.passed_over.append(f"{path}: a hidden folder with {count} model {files}")
            folders[:] = sorted(set(folders) - set(linked) - set(hidden))
            yield from (os.path.join(root, name) for name in names if _is_model(name))

    def _file(self, path: str) -> Iterator[ModelFile]:
        yield ModelFile(path, path)

    # --- an OCI image layout ---------------------------------------------------------------
    def _oci(self, layout: Path) -> Iterator[ModelFile]:
        found = []
        for manifest in _manifests(layout):
            target = self._new_folder()
            titles = set[PurePosixPath]()
            for layer in _objects(manifest.get("layers")):
                given = layer.get("annotations")
                said = given if isinstance(given, dict) else {}
                title = str(said.get(_TITLE, ""))
                if not title or "\0" in title or said.get(_UNPACK):
                    continue
                name = PurePosixPath(title)
                if name.is_absolute() or ".." in name.parts:
                    raise _bad_layout(layout, f"the title {title!r} leads out of the folder")
                if name in titles:  # whoever unpacks it decides which one is the model
                    raise _bad_layout(layout, f"two layers of one image are titled {title!r}")
                titles.add(name)
                _link(_blob(layout, layer), target / name)
                if _is_model(name.name):
                    found.append(ModelFile(str(target / name), f"{layout}@{title}"))
        if not found:
            raise _bad_layout(layout, "no layer is titled *.onnx")
        yield from sorted(found, key=lambda file: file.name)

    def _new_folder(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnx24-")
        return Path(tempfile.mkdtemp(dir=self._folder.name))


def _is_model(name: str) -> bool:
    return name.lower().endswith(".onnx")


def _names_in(folder: str, unreadable: Callable[[OSError], None]) -> Iterator[str]:
    for _, _, names in os.walk(folder, onerror=unreadable):
        yield from names


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
        document = json.loads(regular(path).read_text(encoding="utf-8"))
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
