"""What a pass is, and what it is given.

A pass is a frozen dataclass: its fields are the pipeline text, the command-line flags and the
reference page; its docstring is its manual. `run` finds sites, asks the analyses, rewrites the
model and says what happened.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from onnx24.analysis.cache import Analysis, AnalysisCache
from onnx24.analysis.eligibility import Verdict
from onnx24.codes import Code, register
from onnx24.diagnostics import Diagnostic, Diagnostics, diagnostic
from onnx24.effects import Effects
from onnx24.errors import InternalError
from onnx24.ir.index import NodeSite
from onnx24.ir.model import Model
from onnx24.layerwise.resources import Resources

if TYPE_CHECKING:
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target

__all__ = ["Code", "Context", "Effects", "Pass", "SiteRecord", "code_ids"]

Numeric = Literal["exact", "rounding", "close"]

T = TypeVar("T")
A = TypeVar("A", bound=Analysis)


@dataclass(frozen=True, kw_only=True)
class Pass(abc.ABC):
    """Base of all passes. Subclasses are frozen keyword-only dataclasses whose fields carry
    `Annotated[type, "help text"]` and a default; the types understood are those of
    `passmgr.options`."""

    name: ClassVar[str]
    effects: ClassVar[Effects]
    codes: ClassVar[tuple[str | Code, ...]] = ()
    """What it may say. A plug-in gives its own as `Code`: with a title, an explanation, a hint."""
    after: ClassVar[tuple[str, ...]] = ()
    """Passes that must stand earlier when both are in a pipeline."""
    numeric: ClassVar[Numeric] = "rounding"
    """What becomes of the outputs; `passmgr.guard` holds a pass to it. "exact": the same operations
    on the same numbers. "rounding": the same function, computed another way. "close": another
    function, near the old one (pruning, quantization)."""

    enters_functions: ClassVar[bool] = True
    """False where products in local functions are out of its sight; the manager says so."""

    heavy: ClassVar[bool] = False
    """Whether its command takes --memory, --workers, --executor and --work-dir."""

    def touches(self) -> Effects:
        """What this instance may change: `effects`, unless its options say less."""
        return self.effects

    @abc.abstractmethod
    def run(self, model: Model, ctx: Context) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """What one pass did, or refused to do, at one site. `weight` is the initializer's name in
    the *input* model where there is one, so that records of several passes line up."""

    pass_name: str
    action: str  # "pruned", "quantized", "rewritten", "folded", "cast", "refused", …
    code: str
    weight: str = ""
    node: str = ""
    op: str = ""
    scope: str = ""
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {("pass" if k == "pass_name" else k): v for k, v in vars(self).items() if v}


def code_ids(cls: type[Pass]) -> tuple[str, ...]:
    """The codes of a pass by name; those of its own get known. Raises: ValueError for a code of its
    own that is taken."""
    for entry in cls.codes:
        if isinstance(entry, Code):
            register(entry)
    return tuple(entry.id if isinstance(entry, Code) else entry for entry in cls.codes)


def _no_progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    yield from items


class Mark(NamedTuple):
    """How much a context holds."""

    records: int
    diagnostics: int
    sites: int


@dataclass
class Context:
    """What the manager gives to a running pass."""

    target: Target
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    calibration: Calibration | None = None
    analyses: AnalysisCache = field(default_factory=AnalysisCache)
    records: list[SiteRecord] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    """Numbers of the pass that is running, for the report; the manager empties it before each."""
    layer_seconds: dict[str, float] = field(default_factory=dict)
    """How long each layer took, by weight; apart from the records, which are always the same."""
    resumed: int = 0
    """Layers that a killed run had solved: apart from the statistics for the same reason."""
    progress: Callable[..., Iterator[Any]] = _no_progress
    work_dir: Path | None = None
    """Where a killed run leaves what the next one can go on with."""
    resources: Resources = field(default_factory=Resources)
    site_limit: int | None = None
    """`--stop-after N`: after N admitted sites, `admit` says no."""
    sites: list[str] = field(default_factory=list)

    def enter(self, instance: Pass) -> None:
        """What is said from now on is that pass's, and must be among its codes."""
        declared = code_ids(type(instance))

        def admits(item: Diagnostic) -> None:
            if item.code not in declared:
                raise InternalError.of(
                    "O24-906",
                    f"pass {instance.name!r} says {item.code}, and its `codes` are "
                    f"{', '.join(declared) or 'none'}",
                )

        self.diagnostics.pass_name, self.diagnostics.admits = instance.name, admits

    def leave(self) -> None:
        self.diagnostics.pass_name, self.diagnostics.admits = "", None

    def mark(self) -> Mark:
        return Mark(len(self.records), len(self.diagnostics), len(self.sites))

    def rewind(self, mark: Mark) -> None:
        """Unsay what came after the mark: the passes that said it were taken back."""
        del self.records[mark.records :], self.sites[mark.sites :]
        self.diagnostics.truncate(mark.diagnostics)

    def admit(self, site: str) -> bool:
        """Ask before transforming a site (a layer, a weight). Counts it; False once the limit
        is reached, so that bisection can name the site that breaks a model."""
        if self.site_limit is not None and len(self.sites) >= self.site_limit:
            return False
        self.sites.append(f"{self.diagnostics.pass_name}: {site}")
        return True

    def analysis(self, model: Model, kind: type[A]) -> A:
        """The analysis for the model as it is now; computed once per generation."""
        return self.analyses.get(model, kind)

    def record(
        self,
        action: str,
        code: str,
        *,
        weight: str = "",
        node: str = "",
        op: str = "",
        scope: str = "",
        reason: str = "",
        **facts: Any,
    ) -> None:
        """Say what happened at a site: a line of the report's ledger and a diagnostic.

        Raises: InternalError O24-906 for a code that the pass does not declare.
        """
        message = f"{action}: {reason}" if reason else action
        self.diagnostics.add(
            diagnostic(code, message, scope=scope, node=node, op=op, tensor=weight, facts=facts)
        )
        self.records.append(
            SiteRecord(
                pass_name=self.diagnostics.pass_name,
                action=action,
                code=code,
                weight=weight,
                node=node,
                op=op,
                scope=scope,
                reason=reason,
                facts=facts,
            )
        )

    def record_weight(
        self, verdict: Verdict, action: str, code: str, reason: str, **facts: Any
    ) -> None:
        """`record` of a weight, with the numbers of its verdict and those of `facts`."""
        self.record(
            action,
            code,
            weight=verdict.key.name,
            scope=verdict.key.scope,
            node=verdict.node,
            op=verdict.op,
            reason=reason,
            **{**verdict.facts, **facts},
        )

    def refuse_node(self, code: str, site: NodeSite, reason: str) -> None:
        """Record that a node without a weight to name is left as it is."""
        self.record(
            "refused",
            code,
            node=site.name,
            op=site.proto.op_type,
            scope=site.scope,
            reason=reason,
        )
