"""What a model must be, as a TOML file.

A policy is a set of keys in sections; `KEYS` lists them all, with what each expects and means.
What is not written is not checked, except that the model is valid. Unknown keys are refused: a
rule that is silently ignored is worse than none. docs/policy.md is the manual, and
docs/policy.schema.json the schema that editors read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnx24.codes import CODES
from onnx24.errors import InputError
from onnx24.ir.inputs import regular
from onnx24.report.limits import METRICS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEVERITIES = ("error", "warning", "note", "off")
DIMS = ("any", "batch", "none")

_EXPECTED = {
    "share": "a share from 0 to 1",
    "number": "a number",
    "count": "an integer, and no negative one",
    "seconds": "a number above 0",
    "flag": "true or false",
    "text": "a string",
    "names": "a list of strings",
    "texts": "a table of strings",
    "numbers": "a table of numbers",
    "severity": f"one of {', '.join(SEVERITIES)}",
    "dims": f"one of {', '.join(DIMS)}",
    "path": "a path, as a string",
}
"""Kind of a value → what a message says was expected."""


@dataclass(frozen=True)
class Key:
    """One key of a policy file: the kind of its value (a key of `_EXPECTED`), and its meaning."""

    kind: str
    meaning: str


_NUMERIC = {
    name: Key("share" if name == "top1" else "number", metric.meaning)
    for name, metric in METRICS.items()
}
_QDQ = {
    "zero-point": "the zero point of a Q or DQ is not 0 (O24-630)",
    "implied-zero-point": "a Q or DQ has no zero point (O24-228)",
    "type": "a Q or DQ uses a type that TensorRT does not take, such as UINT8 (O24-631)",
    "fp8": "a Q or DQ is FP8, which the target has no kernels for (O24-255)",
    "scale": "a scale is 0, negative or NaN (O24-250)",
    "domain": "a Q or DQ is not ONNX's own, but of com.microsoft or trt (O24-251)",
    "constant": "a quantized constant is a scalar, or read by something else than DQ (O24-252, "
    "O24-253)",
    "int4": "an INT4 weight stands beside an INT8 activation where that fails (O24-254)",
    "computed-scale": "a scale of an INT8 convolution is no constant (O24-260)",
    "small-bias": "a bias is quantized to 8 bits (O24-256)",
    "activation-scale": "the scale of an activation is no scalar (O24-632)",
    "bias": "INT32 stands behind DequantizeLinear (O24-633)",
    "weight-axis": "a weight has no scale of its own for each output channel (O24-634)",
    "integer-operator": "QLinearConv and other integer operators (O24-635)",
    "unpaired": "what QuantizeLinear makes is read by something else than DQ (O24-636)",
    "one-sided": "only one operand of a product is quantized (O24-637)",
    "residual": "a pair stands between a convolution and its residual Add (O24-638)",
    "sparse-output": "the result of a 2:4 INT8 product is not quantized, so that TensorRT takes "
    "no sparse kernel (O24-639)",
}

KEYS: dict[str, dict[str, Key]] = {
    "sparsity": {
        "min_coverage": Key("share", "of the eligible elements, those in 2:4 weights, at least"),
        "min_weights": Key("share", "of the eligible weights, those that are 2:4, at least"),
        "layers": Key("names", "weights that must be 2:4, by name or pattern (`encoder.*`)"),
        "claims": Key("flag", "weights that are recorded as 2:4 are 2:4"),
    },
    "qdq": {
        "min_coverage": Key(
            "share", "of the products with a weight, those with both operands quantized, at least"
        ),
        **{name: Key("severity", f"severity of: {meaning}") for name, meaning in _QDQ.items()},
    },
    "model": {
        "min_opset": Key("count", "version of ai.onnx, at least"),
        "max_opset": Key("count", "version of ai.onnx, at most"),
        "target_opsets": Key("flag", "the opset is one that the target's TensorRT parses"),
        "min_ir_version": Key("count", "IR version, at least"),
        "max_ir_version": Key("count", "IR version, at most"),
        "max_bytes": Key("count", "size of the model with its data files [bytes], at most"),
        "max_nodes": Key("count", "nodes in all graphs, at most"),
        "external_data": Key("flag", "false: all weights are in the model file"),
        "functions": Key("flag", "false: the model has no local functions"),
        "dtypes": Key("names", "types that inputs, outputs and weights may have (`float16`)"),
        "consistent_shapes": Key(
            "flag", "ONNX's strict shape inference finds no contradiction (O24-627, a warning)"
        ),
        "distinct_dims": Key(
            "flag", "no input has two dynamic dimensions of one name (O24-628, a warning)"
        ),
        "dynamic_dims": Key(
            "dims", "which dimensions of the inputs may be dynamic: any, the first (batch), none"
        ),
    },
    "operators": {
        "allow": Key("names", "the only operators that may occur (`Conv`, `com.example.Op`)"),
        "deny": Key("names", "operators that must not occur (`Unique`, `Resize{mode=cubic}`)"),
        "domains": Key("names", "the only domains that may occur (`ai.onnx`)"),
        "also": Key("names", "operators that may occur whatever `allow` and `domains` say"),
    },
    "metadata": {
        "required": Key("names", "entries of metadata_props that must be there and not empty"),
        "values": Key("texts", "entry = pattern that its value must match"),
    },
    "provenance": {
        "required": Key("flag", "the model says what made it, and of what (`onnx24.*` entries)"),
        "source_sha256": Key("text", "digest of the file that the model was made of"),
        "full": Key("flag", "all values are recorded by sha256, none by a checksum"),
        "pipeline": Key("text", "pattern that the pipeline's text must match"),
        "min_version": Key("text", "version of onnx24 that made it, at least"),
        "signed_by": Key("path", "a file of Ed25519 public keys, one of which signed the model"),
    },
    "numeric": {
        "reference": Key("path", "the model to compare with"),
        "data": Key("path", "samples to run both on, as for `compare --data`"),
        "outputs": Key(
            "names", "outputs, or inner values, that the limits are for; every output without it"
        ),
        **_NUMERIC,
    },
    "task": {
        "data": Key("path", "an .npz of inputs, labels and, for ranking, queries"),
        "output": Key("text", "the output that is judged; the first where it is not given"),
        "labels": Key("text", "name of the labels' array (default `label`)"),
        "queries": Key("text", "name of the queries' array (default `query`)"),
        "accuracy": Key("share", "classification accuracy, at least"),
        "pnr": Key("number", "positive-negative rate, at least"),
        "ndcg": Key("share", "NDCG@k, at least"),
        "k": Key("count", "k of NDCG@k (default 10)"),
        "max_drop": Key("number", "of each metric that has a limit, below the reference, at most"),
        "reference": Key("path", "the model that max_drop is measured against"),
    },
    "latency": {
        "ledger": Key("path", "a JSON file of measurements"),
        "max": Key("numbers", "place in the ledger (`engine.median_ms`) = number, at most"),
        "min": Key("numbers", "place in the ledger (`speedup.end_to_end`) = number, at least"),
        "same_model": Key("flag", "the ledger's `sha256` is this model's"),
    },
    "backend": {
        "build": Key("text", "a backend that must build an engine of it, such as tensorrt-rtx"),
        "shapes": Key("names", "shapes of dynamic inputs, as for `build --shapes`"),
        "timeout": Key("seconds", "of the build [s]"),
    },
    "limits": {
        "nodes": Key("count", "nodes that a file may hold before it is refused unread"),
        "messages": Key("count", "parts of the file that are visited before it is refused"),
        "seconds": Key("seconds", "time that checking one model may take [s]"),
        "memory_mib": Key("count", "memory that checking one model may take [MiB]"),
    },
}
_TOP = {
    "target": Key("text", "the target that eligibility is judged for (default: --target)"),
    "extends": Key("text", "a preset's name, or another policy file, that this one adds to"),
    "fail_on": Key("severity", "the least severity that fails: error (default) or warning"),
    "severity": Key("texts", "code = severity, for findings of any rule (`O24-611 = warning`)"),
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules. `values`: "section.key" → value, only what was given. `paths`: for those that
    are paths, the file: relative ones start at the folder of the policy that gave them."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    fail_on: str = "error"
    severity: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def path(self, key: str) -> Path | None:
        """The file that a key names."""
        return Path(self.paths[key]) if key in self.paths else None

    def has(self, section: str) -> bool:
        return any(key.startswith(f"{section}.") for key in self.values)

    @property
    def runs_models(self) -> bool:
        """Whether the check runs or builds the model, rather than only reads it."""
        return any(self.has(section) for section in ("numeric", "task", "backend"))

    def rules(self) -> dict[str, Any]:
        """What is checked, for reports."""
        found: dict[str, Any] = dict(sorted(self.values.items()))
        if self.severity:
            found["severity"] = dict(sorted(self.severity.items()))
        if self.fail_on != "error":
            found["fail_on"] = self.fail_on
        return found

    def digest(self) -> str:
        """sha256 of the rules, in hex: the same rules, the same digest, whatever the file's
        comments, order and name."""
        document = {"target": self.target, "rules": self.rules()}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


BUILT_IN = Policy(name="built-in", values={"sparsity.min_coverage": 1.0, "sparsity.claims": True})
"""A model that calls itself sparse and is dense must not pass: everything eligible is 2:4."""


@cache
def presets() -> dict[str, str]:
    """Name → TOML text of the policies that come with onnx24."""
    folder = files(__package__).joinpath("policies")
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def read_policy(path: str) -> Policy:
    """A preset by its name, or a file. Raises: InputError O24-044, with the nearest key."""
    return _read(path, ())


def _read(path: str, above: tuple[str, ...]) -> Policy:
    if path in above:
        raise _bad(path, f"extends itself, by {' → '.join([*above, path])}")
    if path in presets():
        text, folder = presets()[path], "."
    else:
        try:
            text, folder = regular(path).read_text(encoding="utf-8"), str(Path(path).parent)
        except OSError as err:
            hint = _near(path, presets(), "presets are") if "/" not in path else None
            raise _bad(path, f"cannot be read: {err.strerror or err}", hint) from err
        except UnicodeDecodeError as err:
            raise _bad(path, f"is no TOML: {err}") from err
    return parse_policy(text, path, folder, above)


def parse_policy(text: str, name: str, folder: str = ".", above: tuple[str, ...] = ()) -> Policy:
    """A policy of its TOML text. Raises: InputError O24-044."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise _bad(name, f"is no TOML: {err}") from err
    base = Policy(name=name)
    if "extends" in document:
        parent = _value(name, "extends", _TOP["extends"], document.pop("extends"))
        path = parent if parent in presets() else str(Path(folder) / parent)
        base = replace(_read(path, (*above, name)), name=name)
    return _fill(base, document, folder)


def _fill(base: Policy, document: Mapping[str, Any], folder: str) -> Policy:
    name, values, paths = base.name, dict(base.values), dict(base.paths)
    severity, target, fail_on = dict(base.severity), base.target, base.fail_on
    for section, content in document.items():
        if section in _TOP:
            given = _value(name, section, _TOP[section], content)
            if section == "target":
                target = given
            elif section == "fail_on":
                fail_on = given
            else:
                severity |= _severities(name, given)
            continue
        if section not in KEYS:
            known = {**KEYS, **_TOP}
            raise _bad(name, f"unknown section [{section}]", _near(section, known))
        if not isinstance(content, dict):
            raise _bad(name, f"{section!r}: expected a table, got {content!r}")
        for key, value in content.items():
            if key not in KEYS[section]:
                hint = _near(key, KEYS[section])
                raise _bad(name, f"unknown key {key!r} in [{section}]", hint)
            full = f"{section}.{key}"
            values[full] = _value(name, full, KEYS[section][key], value)
            if KEYS[section][key].kind == "path":
                paths[full] = str(Path(folder) / value)
    if fail_on not in ("error", "warning"):
        raise _bad(name, f"fail_on: expected error or warning, got {fail_on!r}")
    policy = replace(
        base, values=values, paths=paths, severity=severity, target=target, fail_on=fail_on
    )
    _check_complete(policy)
    return policy


def _check_complete(policy: Policy) -> None:
    """Raises: InputError O24-044 for keys that mean nothing without others."""
    needs = [
        (any(policy.get(f"numeric.{m}") is not None for m in METRICS), "numeric.data"),
        (any(policy.get(f"numeric.{m}") is not None for m in METRICS), "numeric.reference"),
        (policy.has("task"), "task.data"),
        (policy.get("task.max_drop") is not None, "task.reference"),
        (policy.has("latency"), "latency.ledger"),
        (policy.has("backend"), "backend.build"),
    ]
    for wanted, key in needs:
        if wanted and policy.get(key) is None:
            raise _bad(policy.name, f"{key} is missing, without which its section says nothing")
    if policy.get("numeric.outputs") == []:
        raise _bad(policy.name, "numeric.outputs: expected names, found none", "leave the key out")
    if policy.has("numeric") and not any(policy.get(f"numeric.{m}") is not None for m in METRICS):
        raise _bad(policy.name, "[numeric] has no limit", f"limits are {', '.join(METRICS)}")
    metrics = ("accuracy", "pnr", "ndcg")
    if policy.has("task") and not any(policy.get(f"task.{m}") is not None for m in metrics):
        raise _bad(policy.name, "[task] has no limit", f"limits are {', '.join(metrics)}")


def _severities(name: str, given: Mapping[str, str]) -> dict[str, str]:
    for code, severity in given.items():
        if code not in CODES:
            raise _bad(name, f"severity: there is no code {code!r}", _near(code, CODES, ""))
        if severity not in SEVERITIES:
            raise _bad(name, f"severity.{code}: expected {_EXPECTED['severity']}, got {severity!r}")
    return dict(given)


def _value(path: str, key: str, kind: Key, value: Any) -> Any:
    if not _fits(kind.kind, value):
        raise _bad(path, f"{key}: expected {_EXPECTED[kind.kind]}, got {value!r}", kind.meaning)
    return float(value) if kind.kind in ("share", "number", "seconds") else value


def _fits(kind: str, value: Any) -> bool:
    # A TOML integer is a number, and true is none.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "share":
        return number and 0 <= value <= 1
    if kind == "number":
        return number and value == value
    if kind == "seconds":
        return number and 0 < value < math.inf
    if kind == "count":
        return number and isinstance(value, int) and value >= 0
    if kind == "flag":
        return isinstance(value, bool)
    if kind in ("text", "path"):
        return isinstance(value, str) and bool(value)
    if kind == "names":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "texts":
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if kind == "numbers":
        return isinstance(value, dict) and all(_fits("number", item) for item in value.values())
    return value in (SEVERITIES if kind == "severity" else DIMS)


def _near(name: str, known: Iterable[str], say: str = "known are") -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}{say} {', '.join(known)}" if say else meant


def _bad(path: str, message: str, hint: str | None = None) -> InputError:
    return InputError.of("O24-044", message, file=path, hint=hint)


# --- the published schema ---------------------------------------------------------------------

_SCHEMAS: dict[str, dict[str, Any]] = {
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "number": {"type": "number"},
    "count": {"type": "integer", "minimum": 0},
    "seconds": {"type": "number", "exclusiveMinimum": 0},
    "flag": {"type": "boolean"},
    "text": {"type": "string", "minLength": 1},
    "path": {"type": "string", "minLength": 1},
    "names": {"type": "array", "items": {"type": "string"}},
    "texts": {"type": "object", "additionalProperties": {"type": "string"}},
    "numbers": {"type": "object", "additionalProperties": {"type": "number"}},
    "severity": {"enum": list(SEVERITIES)},
    "dims": {"enum": list(DIMS)},
}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a policy file, as docs/policy.schema.json publishes it."""

    def table(keys: Mapping[str, Key]) -> dict[str, Any]:
        return {name: {**_SCHEMAS[k.kind], "description": k.meaning} for name, k in keys.items()}

    sections = {
        name: {"type": "object", "additionalProperties": False, "properties": table(keys)}
        for name, keys in KEYS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnx24 policy",
        "description": "What a model must be; `onnx24 check --policy FILE`.",
        "type": "object",
        "additionalProperties": False,
        "properties": {**table(_TOP), **sections},
    }
