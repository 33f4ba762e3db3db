"""What a GPU architecture under a TensorRT release can do, as data with its sources.

`targets.toml` holds the rows; `Target` is one joined row. A rule that depends on TensorRT's
behaviour asks here, so that a new release is a change of data. Fields named in `unconfirmed`
are working values that no public evidence settles; ask `confirmed()` before telling a user.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

from onnx24.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULT", "Target", "default_preset", "load", "names", "presets", "render_docs"]

DEFAULT = "sm86-trt10"
_DEFAULT_TRT = "10"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One architecture under one TensorRT release. Two targets are equal when their names are.

    `trt` is "8", "9", "10", "11" or "rtx1". `sparse_dtypes` uses fp16, int8, bf16, tf32, fp8, fp4.
    `sparse_min_channels` [channels, both sides] is a hint where gain is plausible, and
    `int8_k_multiple` [elements] a preference; only `sparse_k_multiple` [elements] limits
    eligibility. `conv1x1`: matmul-to-conv1x1 rewrites by default. `strongly_typed`: the engine
    computes in the types of the ONNX file. *Source:* `source`, looked at on `checked`.
    """

    name: str
    sm: int = field(compare=False)
    architecture: str = field(compare=False)
    trt: str = field(compare=False)
    sparse_dtypes: frozenset[str] = field(compare=False)
    sparse_dtypes_unconfirmed: frozenset[str] = field(compare=False)
    sparse_k_multiple: int = field(compare=False)
    int8_k_multiple: int = field(compare=False)
    sparse_min_channels: int = field(compare=False)
    matmul_eligible: bool = field(compare=False)
    conv1x1: bool = field(compare=False)
    int8: bool = field(compare=False)
    fp8: bool = field(compare=False)
    bf16: bool = field(compare=False)
    int8_initializers: bool = field(compare=False)
    output_qdq_for_sparse: bool = field(compare=False)
    deconv_scale_axis: int = field(compare=False)
    strongly_typed: bool = field(compare=False)
    opset_min: int = field(compare=False)
    opset_max: int = field(compare=False)
    source: tuple[str, ...] = field(compare=False)
    unconfirmed: frozenset[str] = field(compare=False)
    checked: date = field(compare=False)

    @property
    def compute_capability(self) -> str:
        """As NVIDIA writes it: "8.6", "12.0"."""
        return f"{self.sm // 10}.{self.sm % 10}"

    @property
    def trt_major(self) -> int | None:
        """The major of enterprise TensorRT; None for TensorRT-RTX."""
        return int(self.trt) if self.trt.isdigit() else None

    def confirmed(self, fact: str) -> bool:
        """Whether public evidence settles the field `fact` ("supported": the target itself)."""
        return fact not in self.unconfirmed

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "compute_capability": self.compute_capability}
        for key, value in vars(self).items():
            if isinstance(value, frozenset):
                value = sorted(value)
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, date):
                value = value.isoformat()
            out[key] = value
        return out


def load(name: str | Target) -> Target:
    """The target of that name; "sm86" means "sm86-trt10". A target is itself.

    Raises: InputError O24-025, with the nearest name.
    """
    if isinstance(name, Target):
        return name
    rows = _rows()
    full = name if "-" in name else f"{name}-trt{_DEFAULT_TRT}"
    if full in rows:
        return rows[full]
    near = difflib.get_close_matches(name, [*rows, *_sm_names()], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError.of(
        "O24-025",
        f"there is no target {name!r}",
        hint=f"{hint}`onnx24 targets` lists the {len(rows)} targets",
        facts={"nearest": near[0] if near else None},
    )


def names() -> list[str]:
    """Every target, by architecture and release."""
    return list(_rows())


@cache
def _presets() -> dict[str, str]:
    return tomllib.loads(files(__package__).joinpath("presets.toml").read_text("utf-8"))


def presets() -> dict[str, str]:
    """Preset name → pipeline text."""
    return dict(_presets())


def default_preset(target: Target, *, calibrated: bool) -> str:
    """The preset that nobody named: INT8 where there are samples to find ranges on, and 16-bit
    floats around it where the engine computes in the types that the file says."""
    if not calibrated:
        return "sparse-fp16"
    fits = target.strongly_typed and target.opset_max >= 19
    return "sparse-int8-fp16" if fits else "sparse-int8"


def _sm_names() -> list[str]:
    return sorted({f"sm{t.sm}" for t in _rows().values()})


@cache
def _rows() -> dict[str, Target]:
    text = files(__package__).joinpath("targets.toml").read_text("utf-8")
    return {t.name: t for t in _join(tomllib.loads(text))}


def _join(data: dict[str, Any]) -> Iterator[Target]:
    """Join architecture, release and override rows.

    Raises: KeyError, TypeError or ValueError for a row that lacks a field or has one too many.
    """
    overrides = dict(data.get("override", {}))
    for sm, chip in data["sm"].items():
        for trt, release in data["trt"].items():
            if int(sm) not in release["sms"]:
                continue
            name = f"sm{sm}-{trt if trt.startswith('rtx') else 'trt' + trt}"
            rows = [chip, {k: v for k, v in release.items() if k != "sms"}]
            rows.append(overrides.pop(name, {}))
            yield _target(name, int(sm), trt, [row for row in rows if row])
    if overrides:
        raise ValueError(f"override rows of targets that do not exist: {sorted(overrides)}")


def _target(name: str, sm: int, trt: str, rows: list[dict[str, Any]]) -> Target:
    joined: dict[str, Any] = {}
    for row in rows:
        for key, value in row.items():
            if key in ("int8", "fp8", "bf16"):  # needs the silicon and the release
                joined[key] = joined.get(key, True) and value
            elif key not in ("source", "unconfirmed", "checked"):
                joined[key] = value
    unconfirmed = frozenset(f for row in rows for f in row.get("unconfirmed", ()))
    for key in ("int8", "fp8", "bf16"):
        # One row that rules the type out settles it, whatever the other leaves open.
        if any(row.get(key) is False and key not in row.get("unconfirmed", ()) for row in rows):
            unconfirmed -= {key}
    for key in ("sparse_dtypes", "sparse_dtypes_unconfirmed"):
        joined[key] = frozenset(joined[key])
    if not joined["sparse_dtypes"] and not joined["sparse_dtypes_unconfirmed"]:
        unconfirmed -= {"sparse_dtypes"}  # silicon without 2:4 leaves nothing open
    return Target(
        name=name,
        sm=sm,
        trt=trt,
        source=tuple(s for row in rows for s in row["source"]),
        unconfirmed=unconfirmed,
        checked=min(row["checked"] for row in rows),
        **joined,
    )


def render_docs() -> str:
    """The text of docs/targets.md: the table, what "?" means, and each row's sources."""
    lines = [
        "# Targets",
        "",
        "Generated from `onnx24/targets/targets.toml`; do not edit by hand (a test compares).",
        "",
        f"`--target {DEFAULT}` is the default; `sm86` alone means `sm86-trt{_DEFAULT_TRT}`. A `?`"
        " marks a working value",
        "that no public evidence settles. Eligible never means faster: TensorRT times sparse and"
        " dense kernels.",
        "",
        "| target | architecture | 2:4 types | MatMul eligible | conv1x1 by default | INT8 | FP8 "
        "| BF16 | int8 initializers | INT8 out for sparse "
        "| INT8 ConvTranspose scaled by | strongly typed | opsets |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    targets = list(_rows().values())
    lines += [_doc_row(t) for t in targets]
    lines += [
        "",
        "All targets: the reduction size must be a multiple of "
        + _all(targets, "sparse_k_multiple")
        + " to be eligible; INT8 prefers a multiple of "
        + _all(targets, "int8_k_multiple")
        + "; gain is reported from "
        + _all(targets, "sparse_min_channels")
        + " channels on both sides.",
        "",
        "## Sources",
    ]
    for t in targets:
        lines += ["", f"### {t.name}", "", f"Checked {t.checked.isoformat()}."]
        if t.sparse_dtypes_unconfirmed:
            kinds = ", ".join(sorted(t.sparse_dtypes_unconfirmed))
            lines.append(f"2:4 in silicon, unconfirmed in TensorRT: {kinds}.")
        if t.unconfirmed:
            lines.append(f"Unconfirmed: {', '.join(sorted(t.unconfirmed))}.")
        lines += ["", *(f"- {s}" for s in t.source)]
    return "\n".join(lines) + "\n"


def _doc_row(t: Target) -> str:
    def cell(text: str, *facts: str) -> str:
        return text if all(t.confirmed(f) for f in facts) else f"{text} ?"

    def yes(fact: str) -> str:
        return cell("yes" if getattr(t, fact) else "no", fact)

    cells = [
        cell(f"`{t.name}`", "supported"),
        t.architecture,
        cell(", ".join(sorted(t.sparse_dtypes)) or "none", "sparse_dtypes"),
        yes("matmul_eligible") if t.sparse_dtypes else "–",
        yes("conv1x1"),
        yes("int8"),
        yes("fp8"),
        yes("bf16"),
        yes("int8_initializers"),
        yes("output_qdq_for_sparse") if t.sparse_dtypes else "–",
        cell("output channel" if t.deconv_scale_axis else "input channel", "deconv_scale_axis"),
        yes("strongly_typed"),
        cell(f"{t.opset_min}–{t.opset_max}", "opset_min", "opset_max"),
    ]
    return "| " + " | ".join(cells) + " |"


def _all(targets: list[Target], fact: str) -> str:
    values = sorted({getattr(t, fact) for t in targets})
    text = " or ".join(str(v) for v in values)
    return text if all(t.confirmed(fact) for t in targets) else f"{text} (?)"
