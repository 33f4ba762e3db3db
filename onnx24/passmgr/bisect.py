"""Finds the site whose transformation breaks a model.

Passes ask `Context.admit` before they transform a layer or a weight, so a run can be stopped
after any number of sites. A binary search over that number ends at two neighbours, one good and
one bad, and the site between them is the answer. Where several sites break the model, one of
them is found; the answer holds for the sites before it being transformed.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx24.errors import InputError, InternalError, NotMetError
from onnx24.ir.model import Model
from onnx24.passmgr.instrument import Ledger
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import Pipeline

if TYPE_CHECKING:
    from onnx24.runtime.data import Calibration
    from onnx24.targets import Target


@dataclass(frozen=True)
class Outcome:
    """What an oracle says of a model; `detail` is the number or message behind it."""

    good: bool
    detail: str = ""


Oracle = Callable[[Model], Outcome]


@dataclass(frozen=True)
class Probe:
    """One run with the first `sites` sites transformed."""

    sites: int
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class BisectResult:
    """`verdict`: "found", "good" (nothing breaks the model) or "bad-before" (the model is bad
    with no site transformed: the input itself, or a pass that changes things without asking).

    pass_name, site: the culprit where found. sites: how many there are in all. probes: in the
    order in which they were made.
    """

    verdict: str
    sites: int
    probes: list[Probe]
    number: int | None = None
    pass_name: str = ""
    site: str = ""

    def __str__(self) -> str:
        if self.verdict == "good":
            return f"the result is good with all {self.sites} sites transformed"
        if self.verdict == "bad-before":
            return "the result is bad with no site transformed: " + self.probes[-1].outcome.detail
        return (
            f"site {self.number} of {self.sites} breaks the model: {self.site} "
            f"(pass {self.pass_name})"
        )

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"verdict": self.verdict, "sites": self.sites}
        if self.number is not None:
            out |= {"number": self.number, "pass": self.pass_name, "site": self.site}
        out["probes"] = [
            {"sites": p.sites, "good": p.outcome.good, "detail": p.outcome.detail}
            for p in self.probes
        ]
        return out


def bisect(
    model: Model,
    pipeline: Pipeline,
    oracle: Oracle,
    *,
    target: Target,
    calibration: Calibration | None = None,
    work_dir: Path | None = None,
    verify: bool = True,
    on_probe: Callable[[Probe], None] | None = None,
) -> BisectResult:
    """Search for the first site that turns the oracle from good to bad.

    A run that ends in InternalError or NotMetError counts as bad, so that a crash or a failing
    check can be bisected too. Makes about log2(sites) + 2 runs. The model is left as it was.
    Raises: InputError and BackendError as the passes and the oracle do.
    """
    start = model.snapshot()
    probes: list[Probe] = []

    def probe(limit: int | None) -> tuple[bool, list[str]]:
        ledger = Ledger()
        try:
            run(
                model,
                pipeline,
                target=target,
                calibration=calibration,
                instruments=[ledger],
                verify=verify,
                work_dir=work_dir,
                site_limit=limit,
                reproducer_dir=None,
            )
            outcome = oracle(model)
        except (InternalError, NotMetError) as err:
            outcome = Outcome(False, err.diagnostics[0].render())
        finally:
            model.restore(start)
        probes.append(Probe(len(ledger.context.sites), outcome))
        if on_probe is not None:
            on_probe(probes[-1])
        return outcome.good, ledger.context.sites

    good, sites = probe(None)
    if good:
        return BisectResult(verdict="good", sites=len(sites), probes=probes)
    if not sites or not probe(0)[0]:
        return BisectResult(verdict="bad-before", sites=len(sites), probes=probes)
    # Invariant: `low` sites are good, `high` sites are bad, and `culprits` are the latter.
    low, high, culprits = 0, len(sites), sites
    while high - low > 1:
        middle = (low + high) // 2
        good, admitted = probe(middle)
        if good:
            low = middle
        else:
            high, culprits = middle, admitted
    pass_name, _, site = culprits[high - 1].partition(": ")
    return BisectResult(
        verdict="found",
        sites=len(sites),
        probes=probes,
        number=high,
        pass_name=pass_name,
        site=site,
    )


def divergence(reference: Model, data: Calibration, threshold: float) -> Oracle:
    """Good while the relative L2 of every output against `reference` stays within `threshold`.

    reference: a model of its own, not the one that is bisected.
    """
    from onnx24.runtime.compare import compare

    def oracle(model: Model) -> Outcome:
        worst = compare(reference, model, data).worst
        gap = f" ({worst.gap})" if worst.gap else ""
        return Outcome(
            worst.badness <= threshold,
            f"output {worst.name!r}: relative L2 {worst.rel_l2:.3g}{gap}, allowed {threshold:.3g}",
        )

    return oracle


def command(text: str, *, timeout: float | None = None, work_dir: Path | None = None) -> Oracle:
    """Good while a shell command exits with 0. `{model}` in it stands for the saved model; the
    environment variable ONNX24_MODEL holds the same path. A command that is killed by a signal,
    or that runs longer than `timeout` [s], says bad.

    Raises: the oracle raises InputError O24-043 where the shell cannot run the command (126,
    127), and KeyboardInterrupt where the command was interrupted.
    """

    def oracle(model: Model) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="onnx24-bisect-", dir=work_dir) as folder:
            path = Path(folder) / "model.onnx"
            model.save(path)
            try:
                done = subprocess.run(
                    text.replace("{model}", shlex.quote(str(path))),
                    shell=True,
                    env={**os.environ, "ONNX24_MODEL": str(path)},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                return Outcome(False, f"the command ran longer than {timeout:g} s")
        if done.returncode in (126, 127):
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reason = said[-1] if said else f"exit code {done.returncode}"
            raise InputError.of(
                "O24-043",
                f"the command {text!r} cannot be run: {reason}",
                hint="check the command; {model} stands for the model's path",
            )
        if done.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
            raise KeyboardInterrupt
        return Outcome(done.returncode == 0, f"the command exited with {done.returncode}")

    return oracle
