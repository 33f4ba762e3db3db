"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

import typer

WRITES = "writes"
"""Stands in the annotation of a field that names a file which the command writes. All others may
name what it reads, which no output replaces (ir/inputs.py)."""
KEEPS = "keeps"
"""The same of a folder."""


def flag(name: str, metavar: str, text: str, **more: Any) -> Any:
    """A flag, for a field of a command: its name (and others, joined by commas), what its value is
    called ("" for a Boolean), and what it means."""
    more.setdefault("show_default", True)
    return typer.Option(*name.split(","), metavar=metavar or None, help=text, **more)


def argument(metavar: str, text: str) -> Any:
    """An argument, for a field of a command."""
    return typer.Argument(metavar=metavar, help=text)


DEFAULT_TARGET = "sm86-trt10"
"""targets.DEFAULT, said again so that --help need not read the table of targets (a test
compares)."""

DEFAULT_MEMORY = "4GiB"

MODEL_HELP = "The ONNX model; '-' reads standard input (no external data then)."
DATA_FORMS = (
    "An .npz (each array stacked along its first axis), a folder of .npz, of images, or of ONNX "
    "test_data_set_*; 'random:N' makes N random samples, which say nothing about accuracy."
)

ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Output = Annotated[
    Optional[str],  # noqa: UP045 - typer evaluates this on Python 3.10 as well
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="The new model; '-' is standard output. Default: MODEL's stem + .onnx24.onnx in the "
        "current folder; '-' where MODEL is '-'.",
        show_default=False,
    ),
    WRITES,
]
TargetName = Annotated[
    str,
    typer.Option("--target", metavar="T", help="GPU architecture and TensorRT release."),
]
Calib = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--calib", metavar="DATA", help=f"Calibration data. {DATA_FORMS}"),
]
Data = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--data", metavar="DATA", help=f"Data for the numeric comparison. {DATA_FORMS}"),
]
Shapes = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--shapes",
        metavar="NAME:SHAPE",
        help="The size of a dynamic input: NAME:DIMS, or NAME:MIN:OPT:MAX for an engine that "
        "takes a range. Dimensions are joined by 'x' or ','. Repeat it for further inputs.",
        show_default=False,
    ),
]
MaxDrop = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--max-drop",
        metavar="METRIC=NUMBER[@OUTPUT]",
        help="Limits that every output must meet, joined by commas: max-abs, rel-l2 and top1 (the "
        "share of samples whose largest class changes) at most; sqnr (in dB) and cosine at least. "
        "@OUTPUT: only for that output, or inner value of the main graph. For instance "
        "sqnr=20,top1=0.01@scores. A run whose shapes differ, or with a NaN, meets none. Unmet: "
        "exit code 1.",
        show_default=False,
    ),
]
Labels = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--labels",
        metavar="FILE.npy",
        help="The right class of each sample, as integers: accuracy=0.01 is then a limit, of how "
        "much of it may be lost.",
        show_default=False,
    ),
]
Recover = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--recover",
        metavar="BUDGET",
        help="Train the result back to the original's outputs, without labels, before it is "
        "verified: a number of steps (200, 200steps), or a time (90s, 5min), in which the number "
        "of steps depends on the machine, so that it does not repeat to the bit. Stops where "
        "samples held out gain no more. Needs torch (onnx24[train]) and 16 real samples.",
        show_default=False,
    ),
]
ReportFile = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write the report as .json, .html or .txt. May be repeated.",
        show_default=False,
    ),
    WRITES,
]
External = Annotated[
    Literal["auto", "embed", "external"],
    typer.Option(
        "--external",
        help="Where large weights go: as in the input (or beside the model above 2 GiB), into the "
        "model, or into OUT.data beside it.",
    ),
]
GuardMode = Annotated[
    str,
    typer.Option(
        "--guard",
        metavar="off|on|each",
        help="Run the model before and after passes that say that they keep its function, in ONNX "
        "Runtime on a few samples (of --calib, else random ones), and take back what does not; "
        "each: look at every pass by itself.",
    ),
]
Provenance = Annotated[
    Literal["auto", "full", "fast", "off"],
    typer.Option(
        "--provenance",
        help="What OUT records of its making: full takes sha256 of all values read and written, "
        "fast a checksum against accidents, which costs next to nothing, off records nothing. "
        "auto is fast for models with 1 GiB of values or more, else full.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output."),
]
Backend = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--backend",
        metavar="B",
        help="Who builds the engine: auto, tensorrt, trtexec, tensorrt-rtx or none. Default: none, "
        "or auto where --engine is given.",
        show_default=False,
    ),
]
Timeout = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--timeout", metavar="SECONDS", help="Stop a build that takes longer.", min=0.001),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of random:N data.", min=0)]
Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="What activations may hold in memory while layers are solved; those beyond it go to "
        "disk. The layer that is being solved and the solved weights come on top. For instance "
        "4GiB or 512MiB.",
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--workers",
        metavar="N",
        help="Threads that solve layers; the result is the same. Default: all cores.",
        min=1,
        show_default=False,
    ),
]
Executor = Annotated[
    Literal["local", "ray", "dask"],
    typer.Option(
        "--executor",
        help="Where layers are solved, and measured by tune: here, or on a cluster by joblib's "
        "backend of that name.",
    ),
]
WorkDir = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--work-dir",
        metavar="DIR",
        help="Keep solved layers here, so that a run that was stopped goes on with them, and the "
        "dense weights of pruned layers, up to 4 GiB, which `gate` can give back; activations "
        "beyond --memory go here as well.",
        show_default=False,
    ),
    KEEPS,
]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Check the invariants after every pass.")
]
Builder = Annotated[str, flag("--backend", "B", "auto, tensorrt, trtexec or tensorrt-rtx.")]


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """How images of DATA become numbers."""

    image_mean: Annotated[
        str | None,
        flag("--image-mean", "X[,X,X]", "With images: their mean, of values in 0 to 1 (0)."),
    ] = None
    image_std: Annotated[
        str | None,
        flag("--image-std", "X[,X,X]", "With images: what they are divided by then. Default: 1."),
    ] = None
    image_layout: Annotated[
        Literal["nchw", "nhwc"] | None,
        flag("--image-layout", "", "With images: where channels are. Default: as in the model."),
    ] = None
    image_size: Annotated[
        str | None,
        flag("--image-size", "HxW", "With images: their size, where the model leaves it open."),
    ] = None

    def samples(self, data: str | None) -> Any:
        """DATA, as images where a flag says so. Raises: InputError O24-043."""
        given = (self.image_mean, self.image_std, self.image_layout, self.image_size)
        if data is None or given == (None,) * 4:
            return data
        from onnx24.runtime.images import Images, numbers_of, size_of

        mean, std, layout, size = given
        return Images(
            data,
            mean=None if mean is None else numbers_of(mean, "--image-mean"),
            std=None if std is None else numbers_of(std, "--image-std"),
            layout=layout,  # type: ignore[arg-type]
            size=None if size is None else size_of(size),
        )
