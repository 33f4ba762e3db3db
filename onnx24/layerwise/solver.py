"""Going through a model stage by stage: run, gather moments, solve, go on with the solved weights.

The number of threads, and where the solving runs, change no bit of the result: sessions run on one
thread each and their results are taken in order, BLAS is held to one thread, and every task is cut
in fixed blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx24.errors import BackendError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.moments import MomentSums
from onnx24.layerwise.progress import Saved
from onnx24.layerwise.resources import Resources
from onnx24.layerwise.results import LayerResult
from onnx24.layerwise.segments import in_order, segment_piece
from onnx24.layerwise.sites import Site
from onnx24.layerwise.stages import Layer, Plan, Segment
from onnx24.layerwise.store import Store
from onnx24.runtime.augment import Augmented
from onnx24.runtime.blas import one_thread
from onnx24.runtime.data import Calibration
from onnx24.sparsity.masks import prune_24_by_stride
from onnx24.sparsity.solve import STEPS, Method, Moments, Problem, make_problem, solve

if TYPE_CHECKING:
    import joblib

__all__ = ["Settings", "parallel", "solve_layers"]

LEAST_ROWS = 1 << 15
"""Rows that a layer is solved on where the samples give as many, however few columns it has: what
matters to a detector is in few places."""
HELD_ROWS = 2048
"""Rows of the held-back samples that a layer is judged by."""
TASK_ROWS = 1024
"""Rows of weights that one task solves."""
DAMPINGS_FEW_ROWS = (0.003, 0.03, 0.3)
"""Tried where a layer has fewer rows than 4 K; held-back rows choose."""
FEW_ROWS = 4
"""Below so many rows for each column the damping is chosen."""
TRIED_OUTPUTS = 128
"""Outputs of a layer that dampings are tried on."""
WIDEST = 1.5
"""No output is widened by more."""
ROWS_FOR_SPREAD = 256
"""With so many held-back rows an output is widened by half of what they say."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the result. steps: of ADMM; sweeps: behind it, of exact choices; rows_per_k:
    calibration rows for each column."""

    method: Method = Method.ADMM
    steps: int = STEPS
    sweeps: int = 0
    refit_steps: int = 4
    asymmetric: bool = True
    rows_per_k: int = 16


def solve_layers(
    model: Model,
    plan: Plan,
    dense: dict[str, np.ndarray],
    pruned: Mapping[str, np.ndarray],
    strides: Mapping[ValueKey, int],
    fit: Calibration | Augmented,
    held: Calibration | None,
    settings: Settings,
    resources: Resources,
    progress: Callable[..., Iterator[Any]],
    saved: Saved,
) -> dict[ValueKey, LayerResult]:
    """Solve every layer of the plan.

    dense: stored weights and biases by name. pruned: those that are pruned without being solved.
    strides: of the groups of four in the stored tensors.
    fit, held: samples to solve on and to judge by, None where there are none.
    Raises: InputError O24-016 where the model can't be run; Unsupported where not in pieces;
    BackendError O24-500 for an executor that is not installed.
    """
    walk = _Walk(model, plan, dense, strides, settings, resources, progress, saved)
    walk.current.update(pruned)
    with (
        one_thread(),
        ThreadPoolExecutor(resources.threads) as walk.pool,
        ThreadPoolExecutor(resources.threads) as walk.inner,
        Store(resources.memory_bytes // 2, resources.folder) as walk.store,
        parallel(resources) as walk.remote,
    ):
        walk.feed(fit, held)
        for segment in plan.segments:
            walk.go(segment)
    return walk.results


@dataclass(eq=False)
class _Group:
    """Layers that share their inputs and so their moments."""

    layers: list[Layer]

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.layers[0].sites

    @property
    def label(self) -> str:
        more = f" and {len(self.layers) - 1} more" if len(self.layers) > 1 else ""
        return f"{self.layers[0].name}{more}"


@dataclass(eq=False)
class _Rows:
    """Held-back rows of a group: U, V [batch, n, K], and S of each layer with a branch.
    not_finite: rows that were left out, held back or not, because a value is NaN or infinite."""

    not_finite: int = 0
    U: list[np.ndarray] = field(default_factory=list)
    V: list[np.ndarray] = field(default_factory=list)
    S: dict[ValueKey, list[np.ndarray]] = field(default_factory=dict)


class _Walk:
    def __init__(
        self,
        model: Model,
        plan: Plan,
        dense: dict[str, np.ndarray],
        strides: Mapping[ValueKey, int],
        settings: Settings,
        resources: Resources,
        progress: Callable[..., Iterator[Any]],
        saved: Saved,
    ) -> None:
        self.model, self.plan, self.settings = model, plan, settings
        self.dense, self.strides = dense, strides
        self.resources, self.progress, self.saved = resources, progress, saved
        self.current = dict(dense)
        self.results: dict[ValueKey, LayerResult] = {}
        self.done = 0
        self.pool: ThreadPoolExecutor
        self.inner: ThreadPoolExecutor
        self.store: Store
        self.remote: joblib.Parallel | None

    # --- running ---------------------------------------------------------------------------
    def feed(self, fit: Calibration | Augmented, held: Calibration | None) -> None:
        """Put the samples where the segments find them; fit first."""
        wanted = {name for segment in self.plan.segments for name in segment.inputs}
        wanted |= {s.data for layer in self.plan.layers for s in layer.sites}
        wanted |= {layer.residual.value for layer in self.plan.layers if layer.residual}
        initializers = {t.name: t for t in self.model.proto.graph.initializer}
        self.runs = 0
        for data in (fit, held):
            self.fit_runs = self.runs if data is held else 0
            for feeds in data.batches(self.model) if data is not None else ():
                for name, array in feeds.items():
                    if name in wanted:
                        self.store.put(self.runs, name, array, array)
                for name in wanted & (initializers.keys() - feeds.keys()):
                    default = self.model.weights.read(initializers[name])
                    self.store.put(self.runs, name, default, default)
                self.runs += 1

    def go(self, segment: Segment) -> None:
        if segment.nodes:
            self._run(segment)
        for group in _groups(segment.layers):
            self._solve(group)
        for name, stage in self.plan.last_use.items():
            if stage == segment.stage:
                self.store.drop(name, self.runs)

    def _run(self, segment: Segment) -> None:
        first = {name: self.store.get(0, name)[0] for name in segment.inputs}
        piece = segment_piece(self.model, segment, self.plan.layers, self.dense, first)
        moved = any(self.current[name] is not self.dense[name] for name in piece.fed)

        def run(number: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
            pairs = {name: self.store.get(number, name) for name in piece.inputs}
            dense = piece.run({name: pair[0] for name, pair in pairs.items()}, self.dense)
            if not moved and all(pair[0] is pair[1] for pair in pairs.values()):
                return dense, dense
            return dense, piece.run({n: pair[1] for n, pair in pairs.items()}, self.current)

        label = f"run {segment.stage + 1}/{len(self.plan.segments)}"
        ran = in_order(self.pool, run, range(self.runs), 2 * self.resources.threads)
        for number, (dense, compressed) in enumerate(self.progress(ran, label, total=self.runs)):
            for name in segment.outputs:
                self.store.put(number, name, dense[name], compressed[name])

    # --- moments ---------------------------------------------------------------------------
    def _gather(self, group: _Group) -> tuple[list[MomentSums], _Rows]:
        K = group.sites[0].columns
        branches = {
            layer.key: layer
            for layer in group.layers
            if layer.residual and self.settings.asymmetric
        }
        R = sum(layer.sites[0].use.N for layer in branches.values())
        sums = [MomentSums(K, self._each, R) for _ in range(group.sites[0].batch)]
        held = _Rows()
        for number in range(self.runs):
            fitting = number < self.fit_runs
            runs, total = (
                (self.fit_runs, max(self.settings.rows_per_k * K, LEAST_ROWS))
                if fitting
                else (self.runs - self.fit_runs, HELD_ROWS)
            )
            limit = max(1, -(-total // max(runs * len(group.sites), 1)))
            for site in group.sites:
                dense, compressed = self.store.get(number, site.data)
                U = site.rows(compressed, limit, number)
                # Behind NonZero and the like the two models may see other rows: only the
                # compressed model's are known to belong to its outputs.
                paired = compressed is not dense and compressed.shape == dense.shape
                V = site.rows(dense, limit, number) if paired else U
                S = {
                    key: self._branch(layer, number, compressed.shape, limit, U.shape[1])
                    for key, layer in branches.items()
                }
                U, V, S, lost = _finite_rows(U, V, S)
                held.not_finite += lost
                if fitting:
                    joined = np.concatenate(list(S.values()), 1) if S else None
                    for b, sum_ in enumerate(sums):
                        u = U[b]
                        sum_.add(u, u if V is U else V[b], joined)
                else:
                    held.U.append(U)
                    held.V.append(V)
                    for key, s in S.items():
                        held.S.setdefault(key, []).append(s)
        return sums, held

    def _branch(
        self, layer: Layer, number: int, x_shape: tuple[int, ...], limit: int, n: int
    ) -> np.ndarray:
        """[n, R]: what the other branch lacks in the compressed model, in units of the layer's
        output."""
        assert layer.residual is not None
        site = layer.sites[0]
        dense, compressed = self.store.get(number, layer.residual.value)
        nothing = np.zeros((n, site.use.N), np.float32)
        if dense is compressed or not site.scale:
            return nothing
        a, b = (site.output_rows(y, x_shape, limit, number) for y in (dense, compressed))
        if a is None or b is None or a.shape != nothing.shape:
            return nothing
        factor = np.float32(site.scale)  # of the product: S is in units of W·u
        if layer.residual.factor is not None:
            factor = factor * layer.residual.factor.astype(np.float32)
        return (a - b) / factor

    def _each(self, function: Callable[[slice], None], pieces: list[slice]) -> None:
        if len(pieces) == 1:
            function(pieces[0])
            return
        for _ in self.inner.map(function, pieces):
            pass

    # --- solving ---------------------------------------------------------------------------
    def _solve(self, group: _Group) -> None:
        # A part of a group is not solved alone: products of other sizes round otherwise.
        if (
            found := self.saved.load([layer.key for layer in group.layers], self.dense)
        ) is not None:
            for layer, result in zip(group.layers, found, strict=True):
                self._take(layer, result)
            return
        start = time.perf_counter()
        sums, held = self._gather(group)
        if not sums[0].seen:
            why = "no calibration sample gives its layer a row"
            if held.not_finite:
                why = "its inputs are NaN or infinite in every calibration sample"
            self.plan.unsolved.update((layer.key, why) for layer in group.layers)
            return
        outcome = self._solve_group(group, sums, held)
        seconds = time.perf_counter() - start
        for layer, result in zip(group.layers, outcome, strict=True):
            result.seconds = seconds / len(group.layers)
            if held.not_finite:
                result.facts["rows_not_finite"] = held.not_finite
            self.saved.store(layer.key, result)
            self._take(layer, result)

    def _take(self, layer: Layer, result: LayerResult) -> None:
        self.results[layer.key] = result
        self.current[layer.key.name] = result.stored
        if layer.bias is not None and result.bias is not None:
            self.current[layer.bias.name] = result.bias

    def _solve_group(self, group: _Group, sums: list[MomentSums], held: _Rows) -> list[LayerResult]:
        layers, site = group.layers, group.sites[0]
        W = [layer.sites[0].matrices(self.dense[layer.key.name]) for layer in layers]
        stacked = np.concatenate(W, axis=1)
        centred = self.settings.asymmetric and all(layer.bias for layer in layers)
        moments = [s.moments(centred=centred) for s in sums]
        rows = moments[0].rows
        extra, mean_s = self._extra(layers, W, sums, centred)
        K = stacked.shape[2]
        problems = [
            make_problem(
                stacked[b],
                moments[b],
                asymmetric=self.settings.asymmetric,
                extra=extra if b == 0 else None,
            )
            for b in range(site.batch)
        ]
        damping = None
        if rows < FEW_ROWS * K and held.U:
            damping = self._damping(layers, problems, moments, mean_s, held, centred)
            problems = [problem.damped(damping) for problem in problems]
        Q = np.stack(self._run_tasks(problems))
        if self.settings.asymmetric:
            self._widen(Q, self._spreads(layers, W, held), held)
        found = self._results(layers, W, Q, moments, mean_s, held, centred)
        for layer, result in zip(layers, found, strict=True):
            result.facts.update(rows=rows, columns=K)
            if damping is not None:
                result.facts["damping"] = damping
            self._guard(layer, result)
        return found

    def _damping(
        self,
        layers: list[Layer],
        problems: list[Problem],
        moments: list[Moments],
        mean_s: list[np.ndarray],
        held: _Rows,
        centred: bool,
    ) -> float:
        """The one of DAMPINGS_FEW_ROWS that the held-back rows like best, tried on some outputs
        whose pairs a quick method chose."""
        some = np.unique(np.linspace(0, len(problems[0].W) - 1, TRIED_OUTPUTS).astype(int))
        branch = [
            np.concatenate(held.S[layer.key])
            if layer.key in held.S
            else np.zeros((sum(u.shape[1] for u in held.U), layer.sites[0].use.N), np.float32)
            for layer in layers
        ]
        lacks = np.concatenate(branch, axis=1)[:, some]
        mean = np.concatenate(mean_s)[some]
        trials = []
        for b, problem in enumerate(problems):
            U, V = (np.concatenate([rows[b] for rows in side]) for side in (held.U, held.V))
            part = problem.of_rows(some)
            trials.append((part, moments[b], U, V @ part.W.T + lacks))

        def wrong(damping: float) -> float:
            total = 0.0
            for part, moment, U, wanted in trials:
                q = solve(part.damped(damping), Method.WANDA, each=self._each)
                error = wanted - U @ q.T
                if centred:
                    shift = part.W @ moment.mean_v - q @ moment.mean_u + mean
                    error -= shift.astype(np.float32)
                total += float(np.square(error, dtype=np.float64).sum())
            return total

        return min(DAMPINGS_FEW_ROWS, key=wrong)

    def _extra(
        self, layers: list[Layer], W: list[np.ndarray], sums: list[MomentSums], centred: bool
    ) -> tuple[np.ndarray | None, list[np.ndarray]]:
        """The branches' moments for all rows of the stack, and the branches' means by layer."""
        nothing = [np.zeros(w.shape[1]) for w in W]
        if not self.settings.asymmetric or not any(layer.residual for layer in layers):
            return None, nothing
        if len(sums) > 1:
            return None, nothing
        G, mean = sums[0].extra(centred=centred)
        parts, means, at = [], [], 0
        for layer, w in zip(layers, W, strict=True):
            n = w.shape[1]
            if layer.residual is None:
                parts.append(np.zeros((n, w.shape[2])))
                means.append(np.zeros(n))
                continue
            parts.append(G[at : at + n])
            means.append(mean[at : at + n])
            at += n
        return np.concatenate(parts), means

    def _run_tasks(self, problems: list[Problem]) -> list[np.ndarray]:
        """One matrix for each problem; cut by rows into tasks of a fixed size."""
        tasks, owners = [], []
        for b, problem in enumerate(problems):
            for first in range(0, len(problem.W), TASK_ROWS):
                rows = slice(first, first + TASK_ROWS)
                tasks.append(problem.of_rows(rows))
                owners.append(b)
        if self.remote is not None:
            import joblib

            solved = self.remote(joblib.delayed(_solve_remotely)(t, self.settings) for t in tasks)
        else:
            solved = list(self.pool.map(self._solve_locally, tasks))
        return [
            np.concatenate([q for q, o in zip(solved, owners, strict=True) if o == b])
            for b in range(len(problems))
        ]

    def _solve_locally(self, problem: Problem) -> np.ndarray:
        return _solve_task(problem, self.settings, self._each)

    def _spreads(
        self, layers: list[Layer], W: list[np.ndarray], held: _Rows
    ) -> list[list[np.ndarray]]:
        """[batch][layer]: [R], the deviation of each dense output on the held-back rows."""
        found: list[list[np.ndarray]] = []
        for b in range(layers[0].sites[0].batch) if held.U else ():
            V = np.concatenate([v[b] for v in held.V])
            found.append([])
            for layer, w in zip(layers, W, strict=True):
                Y = V @ w[b].T
                if layer.key in held.S:
                    Y += np.concatenate(held.S[layer.key])
                found[b].append(Y.std(0, dtype=np.float64))
        return found

    def _widen(self, Q: np.ndarray, spreads: list[list[np.ndarray]], held: _Rows) -> None:
        """Scale each row of `Q [batch, ΣR, K]` so that the layers' outputs spread as the dense
        ones do on the held-back rows.

        What least squares can't explain it leaves out, so its outputs spread less, layer after
        layer: a detector's rare high scores sink below the threshold. *Source:* 2211.08403
        rescales merged networks for the same reason.
        """
        for b, wanted in enumerate(spreads):
            U = np.concatenate([u[b] for u in held.U])
            at = 0
            for spread in wanted:
                q = Q[b, at : at + len(spread)]
                at += len(spread)
                q *= _widening(spread, U @ q.T)[:, None]

    def _results(
        self,
        layers: list[Layer],
        W: list[np.ndarray],
        Q: np.ndarray,
        moments: list[Any],
        mean_s: list[np.ndarray],
        held: _Rows,
        centred: bool,
    ) -> list[LayerResult]:
        out, at = [], 0
        for layer, w, s in zip(layers, W, mean_s, strict=True):
            q = Q[:, at : at + w.shape[1]]
            at += w.shape[1]
            site = layer.sites[0]
            stored = site.stored(q, self.dense[layer.key.name])
            # What was stored is not always what was solved: dtypes round, quantizers clip.
            stored = prune_24_by_stride(stored, self.strides[layer.key])
            seen = site.matrices(stored)
            bias, shift = None, np.zeros(w.shape[1])
            if centred and layer.bias is not None:
                shift = w[0] @ moments[0].mean_v - seen[0] @ moments[0].mean_u + s
                bias = _moved(layer, shift)
            result = LayerResult(stored=stored, bias=bias)
            self._measure(layer, w, seen, shift, held, result)
            out.append(result)
        return out

    def _measure(
        self,
        layer: Layer,
        W: np.ndarray,
        Q: np.ndarray,
        shift: np.ndarray,
        held: _Rows,
        result: LayerResult,
    ) -> None:
        """Errors on the held-back rows, for this result and for magnitude."""
        if not held.U:
            return
        site, key = layer.sites[0], layer.key
        by_magnitude = prune_24_by_stride(self.dense[key.name], self.strides[key])
        M = site.matrices(by_magnitude)
        wrong = wrong_by_magnitude = total = 0.0
        for i, (U, V) in enumerate(zip(held.U, held.V, strict=True)):
            S = held.S[key][i] if key in held.S else 0
            for b in range(len(U)):
                Y = V[b] @ W[b].T
                total += float(np.square(Y, dtype=np.float64).sum())
                Y = Y + S
                error = Y - U[b] @ Q[b].T - shift.astype(np.float32)
                wrong += float(np.square(error, dtype=np.float64).sum())
                error = Y - U[b] @ M[b].T
                wrong_by_magnitude += float(np.square(error, dtype=np.float64).sum())
        if 0 < total < float("inf"):
            result.facts["output_error"] = float(np.sqrt(wrong / total))
            result.facts["output_error_magnitude"] = float(np.sqrt(wrong_by_magnitude / total))

    def _guard(self, layer: Layer, result: LayerResult) -> None:
        """A layer that is worse than by magnitude on held-back rows, or whose values its dtype
        can't hold, falls back to it."""
        error = result.facts.get("output_error")
        held = np.isfinite(result.stored).all()
        held = held and (result.bias is None or np.isfinite(result.bias).all())
        if held and (error is None or error <= result.facts["output_error_magnitude"]):
            return
        key = layer.key
        result.stored = prune_24_by_stride(self.dense[key.name], self.strides[key])
        result.bias, result.magnitude = None, True
        if error is not None:
            result.facts["output_error_solved"] = error
            result.facts["output_error"] = result.facts["output_error_magnitude"]


def _groups(layers: Sequence[Layer]) -> list[_Group]:
    found: dict[tuple[Any, ...], _Group] = {}
    for layer in layers:
        key = (
            tuple((site.data, site.form) for site in layer.sites),
            layer.bias is not None,
            layer.key if len(layer.sites) > 1 else None,
        )
        found.setdefault(key, _Group([])).layers.append(layer)
    return list(found.values())


def _finite_rows(
    U: np.ndarray, V: np.ndarray, S: dict[ValueKey, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[ValueKey, np.ndarray], int]:
    """Without the rows that hold a NaN or an infinity anywhere, and how many those are."""
    good = np.isfinite(U).all((0, 2))
    if V is not U:
        good &= np.isfinite(V).all((0, 2))
    for s in S.values():
        good &= np.isfinite(s).all(1)
    if good.all():
        return U, V, S, 0
    kept = U[:, good]
    S = {key: s[good] for key, s in S.items()}
    return kept, kept if V is U else V[:, good], S, int(np.count_nonzero(~good))


def _widening(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[R] ≥ 1: by how much outputs `found [n, R]` are widened for a deviation of `wanted [R]`."""
    spread = found.std(0, dtype=np.float64)
    known = (spread > 0) & np.isfinite(wanted) & np.isfinite(spread)
    ratio = np.divide(wanted, spread, out=np.ones_like(wanted), where=known)
    trust = len(found) / (len(found) + ROWS_FOR_SPREAD)
    return 1 + trust * (np.clip(ratio, 1, WIDEST) - 1)


def _moved(layer: Layer, shift: np.ndarray) -> np.ndarray:
    """The stored bias after its layer's outputs moved by `shift [R]` (before Gemm's alpha)."""
    bias = layer.bias
    assert bias is not None
    move = shift * layer.sites[0].scale / bias.factor
    values = np.asarray(bias.values, np.float64) + move.reshape(bias.values.shape)
    return values.astype(bias.values.dtype)


def _solve_task(
    problem: Problem, settings: Settings, each: Callable[..., None] | None
) -> np.ndarray:
    return solve(
        problem,
        settings.method,
        steps=settings.steps,
        sweeps=settings.sweeps,
        refit_steps=settings.refit_steps,
        each=each,
    )


def _solve_remotely(problem: Problem, settings: Settings) -> np.ndarray:
    with one_thread():
        return _solve_task(problem, settings, None)


def parallel(resources: Resources) -> AbstractContextManager[joblib.Parallel | None]:
    """What runs work on the executor's cluster; None where that is here. Raises: BackendError
    O24-500 for an executor that is not installed."""
    if resources.executor == "local":
        return nullcontext(None)
    return _Remote(resources)


class _Remote:
    """joblib's Parallel on a cluster's backend. A ray cluster that runs, or the dask scheduler
    that dask's configuration names, is used; where there is none, one of this machine is
    started."""

    def __init__(self, resources: Resources) -> None:
        self._name = resources.executor
        self._workers = resources.workers
        self._stack = ExitStack()

    def __enter__(self) -> joblib.Parallel:
        import joblib

        try:
            if self._name == "ray":
                from ray.util.joblib import register_ray

                register_ray()
            else:
                from distributed import Client

                self._stack.enter_context(Client(set_as_default=True))
            config = joblib.parallel_config(backend=self._name, n_jobs=self._workers or -1)
            self._stack.enter_context(config)
            return joblib.Parallel()
        except (ImportError, ValueError) as err:
            self._stack.close()
            raise BackendError.of(
                "O24-500",
                f"the executor {self._name!r} is not at hand: {err}",
                hint=f"pip install 'onnx24[{self._name}]', or --executor local",
            ) from err

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
