"""`registry check`, `registry scan` and `registry serve`: models in a model registry."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from onnx24.cli import options as o
from onnx24.cli.options import DEFAULT_TARGET

registry_app = typer.Typer(
    rich_markup_mode=None,
    help="Check the models of an MLflow registry, and gate their promotion (extra: mlflow).",
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)

SECRET = "ONNX24_WEBHOOK_SECRET"
KEY = "ONNX24_GATE_KEY"
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""*Source:* MLflow documentation, model aliases (letters, digits, - and _)."""

_Policy = Annotated[
    str,
    typer.Option("--policy", metavar="FILE", help="A TOML policy, or a preset (docs/policy.md)."),
]
_Tracking = Annotated[
    Optional[str],  # noqa: UP045 - typer evaluates this on Python 3.10 as well
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="The MLflow server, or its store. Default: MLFLOW_TRACKING_URI.",
        show_default=False,
    ),
]
_Promote = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--promote",
        metavar="ALIAS",
        help="Give the version this alias where it passes and is no worse than the version that "
        "has it.",
        show_default=False,
    ),
]


@registry_app.command("check")
def check(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="models:/NAME/VERSION or models:/NAME@ALIAS.")
    ],
    policy: _Policy,
    target: o.TargetName = DEFAULT_TARGET,
    tracking_uri: _Tracking = None,
    promote: _Promote = None,
    champion: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--champion",
            metavar="ALIAS",
            help="Compare with the version of this alias. Default: that of --promote.",
            show_default=False,
        ),
    ] = None,
    json: o.Json = False,
) -> int:
    """Check a registered version, and write the result into its tags.

    Exit code 1 where the policy is not met, or where the version is worse than the champion; no
    alias moves then.
    """
    from onnx24.cli.console import Console
    from onnx24.registry.gatekeeper import Gatekeeper
    from onnx24.registry.store import MlflowStore
    from onnx24.report.policy import read_policy

    rules = read_policy(policy)
    _check_aliases(promote, champion)
    store = MlflowStore(tracking_uri)
    version = store.resolve(uri)
    with Gatekeeper(store, rules, target, os.environ.get(KEY, "")) as gatekeeper:
        outcome = gatekeeper.check(version, promote=promote, champion=champion)
    Console(as_json=json).report(_text(outcome, promote), outcome)
    return outcome.exit_code


def _text(outcome: Any, promote: str | None) -> Any:
    from onnx24.lines import block
    from onnx24.report.checktext import render_text

    lines: list[str] = [render_text(outcome.results)]
    lines += [item.render() for item in outcome.worse]
    lines.append(f"{outcome.version}: {outcome.status}")
    if outcome.promoted:
        lines.append(f"  {outcome.promoted!r} points at it now")
    elif promote:
        lines.append(f"  {promote!r} was not given to it")
    return block(lines)


@registry_app.command("scan")
def scan(
    policy: _Policy,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", metavar="NAME", help="Only this model's versions."),
    ] = None,
    target: o.TargetName = DEFAULT_TARGET,
    tracking_uri: _Tracking = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also versions that this policy has a result for.")
    ] = False,
    json: o.Json = False,
) -> int:
    """Check every registered version that this policy has no result for yet.

    An earlier result is believed where it is sealed with the gate's key (the environment variable
    ONNX24_GATE_KEY): anybody who uploads a version can set its tags. Without a key every version is
    checked anew. A version that can't be judged is a line of the result and stops nothing.
    """
    from onnx24.cli.console import Console
    from onnx24.errors import Onnx24Error
    from onnx24.lines import shown
    from onnx24.registry.gatekeeper import STATUS, Gatekeeper, findings_text
    from onnx24.registry.store import MlflowStore
    from onnx24.report.checked import worst
    from onnx24.report.policy import read_policy
    from onnx24.report.table import table

    rules = read_policy(policy)
    store = MlflowStore(tracking_uri)
    console = Console(as_json=json)
    rows: list[tuple[str, str, str]] = []
    documents: list[dict[str, Any]] = []
    codes: list[int] = []
    key = os.environ.get(KEY, "")
    if not key and not again:
        console.note(f"no {KEY} is set: no earlier result is believed, every version is checked")
    with Gatekeeper(store, rules, target, key) as gatekeeper:
        for version in console.progress(store.versions(name), "checking"):
            try:
                if not again and gatekeeper.is_settled(version):
                    tags = store.tags(version)
                    status, said = tags[STATUS], f"{tags.get('onnx24.findings', '')} (earlier)"
                    codes.append({"passed": 0, "failed": 1, "refused": 2}.get(status, 70))
                else:
                    outcome = gatekeeper.check(version)
                    status, said = outcome.status, findings_text(outcome)
                    codes.append(outcome.exit_code)
            except Onnx24Error as err:
                status, said = "error", str(err)
                codes.append(err.exit_code)
            rows.append((str(version), status, said))
            documents.append({"version": str(version), "status": status, "findings": said})
    text = table(("version", "status", "findings"), rows, prose=(2,)) if rows else "no versions"
    console.report(shown(text), {"policy": rules.name, "versions": documents})
    return worst(codes)


@registry_app.command("serve")
def serve(
    policy: _Policy,
    queue: Annotated[
        str, typer.Option("--queue", metavar="FILE", help="The SQLite file of versions that wait.")
    ] = "onnx24-queue.sqlite",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Where to listen.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", help="0: any that is free.", min=0, max=65535)
    ] = 8240,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Versions checked at a time.", min=1)
    ] = 2,
    rescan: Annotated[
        float,
        typer.Option(
            "--rescan", metavar="SECONDS", help="How often to look for versions by itself.", min=1
        ),
    ] = 300.0,
    secret_file: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--secret-file",
            metavar="FILE",
            help=f"Holds the webhook's secret. Default: the environment variable {SECRET}.",
            show_default=False,
        ),
    ] = None,
    target: o.TargetName = DEFAULT_TARGET,
    tracking_uri: _Tracking = None,
    promote: _Promote = None,
) -> int:
    """Receive MLflow's webhooks, check the versions that they announce, and write the results back.

    POST /webhook takes `model_version.created` events with MLflow's signature; GET /healthz and
    GET /metrics say how it goes. What was accepted survives a crash: it waits in --queue, which one
    service at a time works on. Stopping takes two seconds at most; the version at hand waits then.
    """
    from onnx24 import __version__
    from onnx24.driver.usage import usage
    from onnx24.registry.gatekeeper import Gatekeeper
    from onnx24.registry.queue import Queue
    from onnx24.registry.service import Service
    from onnx24.registry.store import MlflowStore, clean_scratch
    from onnx24.report.policy import read_policy

    if not math.isfinite(rescan):
        raise usage(f"--rescan {rescan}: expected a number of seconds", "see --help")
    _check_aliases(promote)
    secret = _secret(secret_file)
    rules = read_policy(policy)
    clean_scratch()
    store = MlflowStore(tracking_uri)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    names_rules = f"{rules.digest()} {rules.target or target} {__version__}"
    waiting = Queue(queue, names_rules)
    try:
        service = Service(
            store,
            waiting,
            lambda: Gatekeeper(store, rules, target, os.environ.get(KEY, "")),
            secret,
            host=host,
            port=port,
            workers=workers,
            promote=promote,
            rescan_s=rescan,
        )
    except (OSError, UnicodeError) as err:
        waiting.close()
        raise usage(
            f"cannot listen on {host}:{port}: {err}", "choose another --port or --host"
        ) from err
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    service.start()
    sys.stderr.write(f"listening on http://{host}:{service.port}\n")
    sys.stderr.flush()
    stopped.wait()
    service.stop()
    waiting.close()
    return 0


def _check_aliases(*aliases: str | None) -> None:
    """Raises: InputError O24-043 for what MLflow takes for no alias."""
    from onnx24.driver.usage import usage

    for alias in aliases:
        if alias is None:
            continue
        if not _ALIAS.fullmatch(alias) or re.fullmatch(r"[vV]\d+|latest", alias):
            raise usage(
                f"{alias!r} is no alias of a model version",
                "letters, digits, - and _; not `latest`, nor v and a number",
            )


def _secret(path: str | None) -> str:
    """Raises: InputError O24-043 where there is none."""
    from onnx24.driver.usage import usage

    try:
        found = Path(path).read_text(encoding="utf-8") if path else os.environ.get(SECRET, "")
    except (OSError, UnicodeDecodeError) as err:
        raise usage(f"--secret-file {path}: {err}", "name a readable text file") from err
    if not found.strip():
        raise usage("webhooks cannot be verified without a secret", f"set {SECRET}")
    return found.strip()
