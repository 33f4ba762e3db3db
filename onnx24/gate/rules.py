"""The rules of a policy that only read the model; what runs it is in gate.running."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnx24.analysis.invariants import broken_claims
from onnx24.backends.onnx_file import inputs_of
from onnx24.diagnostics import Diagnostic, Severity
from onnx24.gate import qdq
from onnx24.gate.subject import Subject
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.ir.scopes import node_label
from onnx24.ir.shapes import inferred
from onnx24.ir.verify import verify
from onnx24.passmgr.provenance import Provenance, version_at_least
from onnx24.report.inspection import WeightRow


def findings(subject: Subject) -> Iterator[Diagnostic]:
    """Every rule that is not met, with the rule's own severity."""
    for problem in verify(subject.model):
        yield _named(problem, subject.path, "valid")
    yield from _sparsity(subject)
    yield from _qdq(subject)
    yield from _model(subject)
    yield from _operators(subject)
    yield from _metadata(subject)
    yield from _provenance(subject)


def _named(problem: Diagnostic, path: str, rule: str) -> Diagnostic:
    return replace(
        problem, where=replace(problem.where, file=path), facts={"rule": rule, **problem.facts}
    )


# --- [sparsity] -------------------------------------------------------------------------------


def _sparsity(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    if policy.get("sparsity.claims"):
        for problem in broken_claims(subject.model, subject.cache):
            yield _named(problem, subject.path, "sparsity.claims")
    least = policy.get("sparsity.min_coverage")
    if least is not None:
        seen = subject.inspection.coverage
        yield from _coverage(
            subject, "min_coverage", least, seen.sparse_elements, seen.eligible_elements, "elements"
        )
    least = policy.get("sparsity.min_weights")
    if least is not None:
        seen = subject.inspection.coverage
        yield from _coverage(subject, "min_weights", least, seen.sparse, seen.eligible, "weights")
    for pattern in policy.get("sparsity.layers", ()):
        yield from _layer(subject, pattern)


def _coverage(
    subject: Subject, key: str, least: float, sparse: int, eligible: int, noun: str
) -> Iterator[Diagnostic]:
    """Nothing to prune is no defect unless coverage is asked for: then there is none."""
    share = sparse / eligible if eligible else None
    if least == 0 or (share is not None and share >= least):
        return
    if share is None:
        message = "no weight of the model is eligible for 2:4"
    elif noun == "weights":
        message = (
            f"{sparse:,} of {eligible:,} eligible weights are 2:4 ({share:.2%}), expected at "
            f"least {least:.2%}"
        )
    else:
        message = (
            f"{sparse:,} of {eligible:,} eligible elements are in 2:4 weights ({share:.2%}), "
            f"expected at least {least:.2%}"
        )
    yield subject.finding(
        "O24-611",
        message,
        f"sparsity.{key}",
        facts={
            "coverage": share,
            key: least,
            f"eligible_{noun}": eligible,
            f"sparse_{noun}": sparse,
        },
    )


def _layer(subject: Subject, pattern: str) -> Iterator[Diagnostic]:
    found = [row for row in subject.inspection.rows if _is_meant(row, pattern)]
    rule = "sparsity.layers"
    if not found:
        yield subject.finding("O24-610", f"no weight or node matches {pattern!r}", rule)
    for row in found:
        if row.is_24:
            continue
        message = "is not 2:4"
        if row.is_24 is None:
            message = f"cannot be 2:4: {row.reason or row.code}"
        yield subject.finding("O24-610", message, rule, scope=row.scope, tensor=row.name)


def _is_meant(row: WeightRow, pattern: str) -> bool:
    """By the weight's name or its consumer's; a bias is meant only by its full name."""
    if row.is_bystander:
        return pattern in (row.name, row.label)
    return any(fnmatchcase(name, pattern) for name in (row.name, row.label, *row.nodes))


# --- [qdq] ------------------------------------------------------------------------------------


def _qdq(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    if not policy.has("qdq"):
        return
    for finding in qdq.findings(subject):
        severity = policy.get(str(finding.facts["rule"]), "off")
        if severity != "off":
            yield replace(finding, severity=Severity[severity.upper()])
    least = policy.get("qdq.min_coverage")
    if least:
        quantized, total = qdq.quantized_products(subject)
        share = quantized / total if total else 0.0
        if share < least:
            yield subject.finding(
                "O24-640",
                f"{quantized:,} of {total:,} products with a weight have both operands quantized "
                f"({share:.2%}), expected at least {least:.2%}",
                "qdq.min_coverage",
                facts={"quantized": quantized, "products": total, "limit": least},
            )


# --- [model] ----------------------------------------------------------------------------------


def _model(subject: Subject) -> Iterator[Diagnostic]:
    policy, model = subject.policy, subject.model
    if not policy.has("model"):
        return
    nodes = sum(1 for _ in subject.nodes())
    opset, ir_version = model.opset, model.file_ir_version
    for key, actual in (
        ("min_opset", opset),
        ("max_opset", opset),
        ("min_ir_version", ir_version),
        ("max_ir_version", ir_version),
        ("max_nodes", nodes),
        ("max_bytes", subject.facts.nbytes if policy.get("model.max_bytes") is not None else 0),
    ):
        limit = policy.get(f"model.{key}")
        if limit is None or (actual >= limit if key.startswith("min") else actual <= limit):
            continue
        yield subject.finding(
            "O24-620",
            f"{key} is {limit:,}, the model has {actual:,}",
            f"model.{key}",
            facts={"limit": limit, "actual": actual},
        )
    low, high = subject.target.opset_min, subject.target.opset_max
    if policy.get("model.target_opsets") and not low <= opset <= high:
        yield subject.finding(
            "O24-620",
            f"opset {opset}, {subject.target.name} parses {low} to {high}",
            "model.target_opsets",
            facts={"low": low, "high": high, "actual": opset},
        )
    if policy.get("model.external_data") is False and model.external_locations():
        names = ", ".join(model.external_locations()[:3])
        message = f"weights lie outside the model file, in {names}"
        yield subject.finding("O24-620", message, "model.external_data")
    if policy.get("model.functions") is False and model.proto.functions:
        names = ", ".join(function.name for function in model.proto.functions[:5])
        message = f"the model has {len(model.proto.functions)} local functions: {names}"
        yield subject.finding("O24-620", message, "model.functions")
    if policy.get("model.consistent_shapes") and (problem := contradiction(model)):
        yield subject.finding("O24-627", problem, "model.consistent_shapes")
    if (allowed := policy.get("model.dtypes")) is not None:
        yield from _dtypes(subject, allowed)
    if policy.get("model.distinct_dims"):
        yield from _shared_names(subject)
    yield from _dims(subject, policy.get("model.dynamic_dims", "any"))


def contradiction(model: Model) -> str:
    """What ONNX's strict shape inference says against a model; "" for nothing."""
    try:
        inferred(model.skeleton(), strict_mode=True, check_type=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, TypeError) as err:
        return " ".join(str(err).split())[:300]
    return ""


def _dtypes(subject: Subject, allowed: list[str]) -> Iterator[Diagnostic]:
    graph = subject.model.proto.graph
    found: dict[str, list[str]] = {}
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.type.HasField("tensor_type"):
                name = _dtype_name(value.type.tensor_type.elem_type)
                found.setdefault(name, []).append(f"{kind} {value.name!r}")
    for key in subject.model.weights:
        name = _dtype_name(subject.model.weights.tensor(key).data_type)
        found.setdefault(name, []).append(f"weight {str(key)!r}")
    for name, where in found.items():
        if name in allowed:
            continue
        more = f" and {len(where) - 1:,} more" if len(where) > 1 else ""
        yield subject.finding(
            "O24-623",
            f"{where[0]}{more} of type {name}; allowed are {', '.join(allowed)}",
            "model.dtypes",
            facts={"dtype": name, "count": len(where)},
        )


def _dtype_name(data_type: int) -> str:
    """numpy's name of an onnx.TensorProto.DataType; `string` for strings."""
    if data_type == TensorProto.STRING:
        return "string"
    try:
        dtype: np.dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return f"type {data_type}"
    return {"float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2"}.get(
        dtype.name, dtype.name.replace("float4_e2m1fn", "float4e2m1")
    )


def _shared_names(subject: Subject) -> Iterator[Diagnostic]:
    for given in inputs_of(subject.model.proto):
        names = Counter(dim for dim in given.shape or () if isinstance(dim, str))
        for name in (name for name, count in names.items() if count > 1):
            axes = [i for i, dim in enumerate(given.shape or ()) if dim == name]
            yield subject.finding(
                "O24-628",
                f"dimensions {axes} of input {given} are all named {name!r}, which TensorRT takes "
                "for one size",
                "model.distinct_dims",
                tensor=given.name,
                facts={"dimensions": axes},
            )


def _dims(subject: Subject, allowed: str) -> Iterator[Diagnostic]:
    if allowed == "any":
        return
    graph = subject.model.proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in constants or not value.type.HasField("tensor_type"):
            continue
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            message = f"the rank of input {value.name!r} is open"
            yield subject.finding("O24-624", message, "model.dynamic_dims", tensor=value.name)
            continue
        open_ = [
            i
            for i, dim in enumerate(tensor.shape.dim)
            if not dim.HasField("dim_value") and not (allowed == "batch" and i == 0)
        ]
        if open_:
            yield subject.finding(
                "O24-624",
                f"dimensions {open_} of input {value.name!r} are dynamic, allowed: {allowed}",
                "model.dynamic_dims",
                tensor=value.name,
                facts={"dimensions": open_},
            )


# --- [operators] ------------------------------------------------------------------------------


def _operators(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    if not policy.has("operators"):
        return
    allow, domains = policy.get("operators.allow"), policy.get("operators.domains")
    deny = set(policy.get("operators.deny", ()))
    also = set(policy.get("operators.also", ()))
    own = ops.functions(subject.model.proto)
    counts: Counter[ops.FunctionId] = Counter()
    first: dict[ops.FunctionId, tuple[str, onnx.NodeProto]] = {}
    for scope, node in subject.nodes():
        if form := next((name for name in deny if _is_form(name, node)), ""):
            where = {"scope": scope, "node": node_label(node), "op": node.op_type}
            yield subject.finding("O24-621", f"the policy denies {form}", "operators.deny", **where)
        key = ops.called(node)
        counts[key] += 1
        first.setdefault(key, (scope, node))
    for key, count in counts.items():
        scope, node = first[key]
        op, domain, full = node.op_type, key.domain, ops.full_name(node)
        place: dict[str, Any] = {
            "scope": scope,
            "node": node_label(node),
            "op": op,
            "facts": {"count": count},
        }
        times = f" ({count:,} times)" if count > 1 else ""
        if full in deny:
            message = f"the policy denies {full}{times}"
            yield subject.finding("O24-621", message, "operators.deny", **place)
        elif not (allow is None or full in also or full in allow or key in own):
            message = f"the policy does not list {full}{times}"
            yield subject.finding("O24-621", message, "operators.allow", **place)
        if not (domains is None or full in also or (domain or ops.ONNX) in domains):
            message = f"{full}{times} is of domain {domain!r}"
            hint = "`onnx24 canonicalize` replaces it by its body" if key in own else None
            yield subject.finding("O24-622", message, "operators.domains", hint=hint, **place)


def _is_form(text: str, node: onnx.NodeProto) -> bool:
    """Whether a node is what `Op{attribute=value}` says."""
    name, brace, rest = text.partition("{")
    if not brace or ops.full_name(node) != name:
        return False
    attribute, _, value = rest.removesuffix("}").partition("=")
    return str(ops.attribute(node, attribute)) == value


# --- [metadata], [provenance] -----------------------------------------------------------------


def _metadata(subject: Subject) -> Iterator[Diagnostic]:
    metadata = subject.model.metadata
    for key in subject.policy.get("metadata.required", ()):
        if not metadata.get(key, "").strip():
            message = f"metadata_props has no {key!r}"
            yield subject.finding("O24-625", message, "metadata.required", facts={"key": key})
    for key, pattern in subject.policy.get("metadata.values", {}).items():
        value = metadata.get(key)
        if value is None or not fnmatchcase(value, pattern):
            message = f"metadata_props {key!r} is {value!r}, expected {pattern!r}"
            yield subject.finding("O24-625", message, "metadata.values", facts={"key": key})


def _provenance(subject: Subject) -> Iterator[Diagnostic]:
    policy = subject.policy
    if not policy.has("provenance"):
        return
    recorded = Provenance.of(subject.model)
    if policy.get("provenance.required"):
        for problem in recorded.problems(subject.model):
            yield subject.finding("O24-626", problem, "provenance.required")
    if policy.get("provenance.full") and not recorded.content_sha256:
        message = "values are recorded by a checksum, which does not exclude intent"
        if not recorded.is_fast:
            message = "no sha256 of the values is recorded"
        yield subject.finding("O24-626", message, "provenance.full")
    wanted = policy.get("provenance.source_sha256")
    if wanted is not None and recorded.source_sha256 != wanted:
        message = f"made of {recorded.source_sha256 or 'nothing recorded'}, expected {wanted}"
        yield subject.finding("O24-626", message, "provenance.source_sha256")
    pattern = policy.get("provenance.pipeline")
    if pattern is not None and not fnmatchcase(recorded.pipeline, pattern):
        message = f"the pipeline is {recorded.pipeline!r}, expected {pattern!r}"
        yield subject.finding("O24-626", message, "provenance.pipeline")
    least = policy.get("provenance.min_version")
    if least is not None and not version_at_least(recorded.version, least):
        message = f"made by onnx24 {recorded.version or '(not recorded)'}, expected {least}"
        yield subject.finding("O24-626", message, "provenance.min_version")
    if (keys := policy.path("provenance.signed_by")) is not None:
        from onnx24.passmgr.signing import signature_problem

        if problem := signature_problem(subject.stored or subject.model, keys):
            yield subject.finding("O24-629", problem, "provenance.signed_by")
