"""Which passes exist: the project's own, by their manifest, and those of installed plug-ins, by
the entry-point group `onnx24.passes`. A pass is imported when it is asked for, not before.

A plug-in that can't be loaded, or that takes a name twice, is an error for who asks for that
pass, and a line in `problems()`; the other passes go on working.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, get_args

from onnx24.codes import CODES
from onnx24.diagnostics import Diagnostic
from onnx24.effects import Effects
from onnx24.errors import InputError, InternalError
from onnx24.passmgr.base import Numeric, Pass, code_ids
from onnx24.passmgr.options import NAME, did_you_mean, field_options

GROUP = "onnx24.passes"
OWN = "onnx24"


@dataclass(frozen=True)
class Entry:
    """A pass by name. `target`: "module:Class"; `distribution`: who ships it, with its version."""

    name: str
    target: str
    distribution: str = OWN


class Registry:
    """Passes by name, from entries; the first of a name counts for `names` only."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[str, list[Entry]] = {}
        for entry in entries:
            same_name = self._entries.setdefault(entry.name, [])
            if entry not in same_name:
                same_name.append(entry)
        self._loaded: dict[str, type[Pass]] = {}

    def names(self) -> list[str]:
        """Own passes in the order of the manifest, then the plug-ins' by name."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Raises: InputError O24-021 for an unknown name, O24-028 for one that is taken twice."""
        if name not in self._entries:
            raise InputError.of("O24-021", self.unknown(name))
        first, *others = self._entries[name]
        if others:
            owners = " and ".join(f"{e.distribution} ({e.target})" for e in (first, *others))
            raise InputError.of("O24-028", f"the pass name {name!r} is taken twice: by {owners}")
        return first

    def unknown(self, name: str) -> str:
        """The message for a name that no pass has."""
        return f"no pass is named {name!r}{did_you_mean(name, self._entries)}"

    def get(self, name: str) -> type[Pass]:
        """The class. Raises: InputError O24-021, O24-028; InternalError for an own pass that
        can't be loaded."""
        if name not in self._loaded:
            self._loaded[name] = self._load(self.entry(name))
        return self._loaded[name]

    def problems(self) -> list[Diagnostic]:
        """What is wrong with the plug-ins, one diagnostic each; imports all of them."""
        found = []
        for name, entries in self._entries.items():
            if all(entry.distribution == OWN for entry in entries):
                continue
            try:
                self.get(name)
            except InputError as err:
                found += err.diagnostics
        return found

    def _load(self, entry: Entry) -> type[Pass]:
        module, _, attribute = entry.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as err:  # importing runs somebody else's code
            reason = f"{type(err).__name__}: {err}"
            raise _broken(entry, f"cannot be imported: {reason}") from err
        if fault := _fault(entry, found):
            raise _broken(entry, fault)
        return found


def _fault(entry: Entry, found: Any) -> str:
    """Why an object is no pass of this name; empty if it is."""
    if not (inspect.isclass(found) and issubclass(found, Pass)):
        return f"expected a subclass of onnx24.passmgr.base.Pass, got {found!r}"
    if "__dataclass_params__" not in vars(found) or not dataclasses.is_dataclass(found):
        return "the class is not a dataclass"
    if inspect.isabstract(found):
        return "the class has no method `run`"
    if not re.fullmatch(NAME, entry.name):
        return "has a name that pipeline text cannot spell"
    if getattr(found, "name", None) != entry.name:
        return f"the class calls itself {getattr(found, 'name', None)!r}"
    if not isinstance(getattr(found, "effects", None), Effects):
        return "the class declares no `effects`"
    if found.numeric not in get_args(Numeric):
        return f"its `numeric` is {found.numeric!r}: expected one of {', '.join(get_args(Numeric))}"
    try:
        field_options(found)
        if unknown := set(code_ids(found)) - set(CODES):
            return f"it declares {', '.join(sorted(unknown))}: give its own codes as `Code`"
    except (TypeError, NameError, ValueError) as err:
        return str(err)
    return ""


def _broken(entry: Entry, reason: str) -> InputError | InternalError:
    message = f"pass {entry.name!r} ({entry.target}) {reason}"
    if entry.distribution == OWN:
        return InternalError.of("O24-900", message)
    return InputError.of(
        "O24-028",
        f"{entry.distribution}: {message}",
        hint=f"fix or uninstall {entry.distribution.split()[0]}",
        facts={"distribution": entry.distribution},
    )


def own_entries() -> list[Entry]:
    """The manifest. Read by name: the core must not import passes."""
    manifest: dict[str, str] = importlib.import_module("onnx24.passes").MANIFEST
    return [Entry(name, target) for name, target in manifest.items()]


def plugin_entries() -> list[Entry]:
    """What installed distributions announce, sorted by name."""
    found = []
    for point in metadata.entry_points(group=GROUP):
        dist = point.dist
        owner = f"{dist.name} {dist.version}" if dist else "an unnamed distribution"
        found.append(Entry(point.name, point.value, owner))
    return sorted(found, key=lambda entry: (entry.name, entry.distribution, entry.target))


@cache
def default() -> Registry:
    """The passes of this installation, looked up once per process."""
    return Registry([*own_entries(), *plugin_entries()])


def get(name: str) -> type[Pass]:
    return default().get(name)


def names() -> list[str]:
    return default().names()
