"""Whether models are what a policy says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnx24 import targets
from onnx24.driver.models import ModelLike, load
from onnx24.driver.progress import ProgressLike, reporter
from onnx24.gate.baseline import read_baseline
from onnx24.gate.sandbox import Sandbox
from onnx24.gate.sources import ModelFile, Sources
from onnx24.gate.verdicts import fail_on, raise_problem
from onnx24.report.policy import BUILT_IN, Policy, read_policy

if TYPE_CHECKING:
    from onnx24.report.checked import Checked
    from onnx24.targets import Target

PolicyLike = Policy | str | os.PathLike[str] | None


def check(
    model: ModelLike, *, policy: PolicyLike = None, target: str | Target = targets.DEFAULT
) -> Checked:
    """Hold a model to a policy.

    policy: a TOML file (docs/policy.md), or a preset: "tensorrt-importable", "sparse-int8",
    "registry-strict". Without one: a valid model whose recorded and eligible weights are all 2:4.
    The model is read in this process; `check_files` reads files that nobody trusts in others.

    Returns: `met`, `findings` with code and place, `to_dict()`.
    Raises: InputError, BackendError where the model cannot be judged.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> model = mlp([64, 32])
    >>> onnx24.check(model).met, onnx24.check(onnx24.prune24(model)).met
    (False, True)
    """
    from onnx24.gate.judge import judge

    rules = policy_of(policy)
    source = load(model)
    name = targets.load(rules.target or target).name
    if source.path is not None:
        result = judge(str(source.path), rules, target=name, name=source.name)
    else:
        with tempfile.TemporaryDirectory(prefix="onnx24-") as folder:
            path = Path(folder) / "model.onnx"
            source.load().save(path)
            result = judge(str(path), rules, target=name, name=source.name)
    raise_problem(result)
    return result


def policy_of(policy: PolicyLike) -> Policy:
    """Raises: InputError O24-044."""
    if isinstance(policy, Policy):
        return policy
    return BUILT_IN if policy is None else read_policy(os.fspath(policy))


def check_files(
    models: Sequence[str],
    *,
    policy: PolicyLike = None,
    target: str | Target = targets.DEFAULT,
    baseline: str | os.PathLike[str] | None = None,
    jobs: int = 0,
    names: dict[str, str] | None = None,
    passed_over: list[str] | None = None,
    progress: ProgressLike = None,
) -> list[Checked]:
    """Hold files to a policy, each read in a process of its own with limits of memory and time, so
    that hostile ones do no harm.

    models: paths, patterns, folders, an OCI image layout. baseline: a file of findings that are
    accepted. jobs: models at a time; 0: one a core. names: what reports call a file, by path.
    passed_over: a list to which what folders hold and is not judged is added, in words.

    Raises: InputError for a policy, a target or a pattern that is none; what is wrong with a file
    is in its result.

    >>> import onnx24
    >>> from onnx24.testing.generate import mlp
    >>> path = onnx24.prune24(mlp([64, 32])).save("sparse.onnx")
    >>> [(result.file, result.status) for result in onnx24.check_files([str(path)])]
    [('sparse.onnx', 'met')]
    """
    rules = policy_of(policy)
    name = targets.load(rules.target or target).name
    known = frozenset[str]() if baseline is None else read_baseline(os.fspath(baseline))
    sources = Sources(list(models))
    with sources as files:
        if passed_over is not None:
            passed_over += sources.passed_over
        shown = [ModelFile(file.path, (names or {}).get(file.path, file.name)) for file in files]
        with Sandbox(rules, name, jobs=jobs or _cores()) as sandbox:
            judged = sandbox.judge_all(shown)
            return [
                result.accepting(known, fail_on(rules))
                for result in reporter(progress).progress(judged, "checking", total=len(shown))
            ]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
