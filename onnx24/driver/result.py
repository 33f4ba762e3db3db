"""What a job gives back."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from onnx24.diagnostics import Diagnostic
from onnx24.driver.models import Source
from onnx24.ir.model import External, Model
from onnx24.lines import Block

if TYPE_CHECKING:
    from onnx24.backends.base import BuildResult
    from onnx24.report.model import Report

PathLike = str | os.PathLike[str]


class Rows(list[dict[str, Any]]):
    """A table as a list of dicts, one a row: `pandas.DataFrame(rows)` is a frame of it."""

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows, as plain dicts that JSON can write."""
        return [dict(row) for row in self]

    def _repr_html_(self) -> str:
        columns = list(dict.fromkeys(key for row in self for key in row))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in columns)
            + "</tr>"
            for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A model that a job made. `name`: what reports call it."""

    compiled: Model = field(repr=False)
    name: str

    @cached_property
    def model(self) -> ModelProto:
        """The whole model in memory. Raises: InputError O24-042 above 2 GiB; `save` has no such
        bound."""
        proto = ModelProto()
        proto.ParseFromString(self.compiled.to_bytes())
        return proto

    def save(self, path: PathLike, *, external: External = "auto") -> Path:
        """Write the model as it was made, whole or not at all.

        external: "embed" puts all weights into the file, "external" into `<name>.data` beside it,
        "auto" does as in the input, and keeps them beside it above 2 GiB.
        Returns: the path. Raises: InputError O24-040 to O24-042.
        """
        self.compiled.save(path, external=external)
        return Path(path)

    def source(self) -> Source:
        """The model, as an argument of the next job."""
        return Source(lambda: Model.from_bytes(self.compiled.to_bytes()), self.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Result(Made):
    """A model that passes made, and what happened on the way.

    report: the object that `--report` writes. engine: of a build, where one was asked for.
    """

    report: Report
    engine: BuildResult | None = field(default=None, repr=False)

    @property
    def status(self) -> str:
        """What became of the job: done, limits not met, or no engine."""
        return self.report.status

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything that was said, in order."""
        return self.report.diagnostics

    @property
    def weights(self) -> Rows:
        """One row a weight: what it is, whether it could be 2:4 and why not, what was done."""
        return Rows(
            {
                "name": line.name,
                "scope": line.scope,
                "dtype": line.dtype,
                "shape": list(line.shape),
                "elements": line.elements,
                "eligible": line.eligible,
                "code": line.code,
                "reason": line.reason,
                "sparse": line.is_sparse,
                "steps": [f"{step.pass_name}: {step.action}" for step in line.steps],
            }
            for line in self.report.weights
        )

    @property
    def comparison(self) -> Rows:
        """One row an output: how far it is from the original's; empty where nothing was
        measured."""
        found = self.report.comparison
        return Rows(dict(row) for row in (found["outputs"] if found else ()))

    def to_dict(self) -> dict[str, Any]:
        """The report as docs/report.md describes it."""
        return self.report.to_json()

    def _repr_html_(self) -> str:
        from onnx24.report.html import render_html

        page = html.escape(render_html(self.report), quote=True)
        # In a frame of its own: the page's style must not reach the notebook's.
        return f'<iframe srcdoc="{page}" style="width:100%;height:40em;border:0"></iframe>'


@dataclass(frozen=True, kw_only=True, eq=False)
class Documented:
    """What a job found: `document` is what the command prints with --json, `text` what without."""

    document: Mapping[str, Any]
    text: Block = field(repr=False)
    diagnostics: tuple[Diagnostic, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document, as plain values that JSON can write."""
        from onnx24.report.jsontext import plain

        found: dict[str, Any] = plain(self.document)
        return found

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeAndDocumented(Made, Documented):
    """A model that a job made without passes, and what the job says of it."""
