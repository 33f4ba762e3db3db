"""Which sites a user's `include` and `exclude` patterns leave to a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnx24.errors import InputError

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Shell patterns, case-sensitive. A site has several names; one that matches is enough."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def objection(self, names: Sequence[str]) -> str | None:
        """Why a site of these names is left out; None where it is not."""
        if self.include and not _match(self.include, names):
            return f"include={'|'.join(self.include)} leaves it out"
        if pattern := _match(self.exclude, names):
            return f"exclude={pattern} leaves it out"
        return None

    def check(self, owner: str, names: Sequence[str], kinds: str) -> None:
        """A pattern that means nothing is a mistake: the layer that it should protect would be
        transformed.

        names: of all sites. kinds: what they name, after "matches no".
        Raises: InputError O24-023.
        """
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not _match((pattern,), names):
                    raise InputError.of(
                        "O24-023",
                        f"{owner}{{{option}={pattern}}} matches no {kinds}",
                        hint="`onnx24 inspect` lists the names",
                    )


def _match(patterns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first pattern that matches any of the names."""
    return next((p for p in patterns if any(fnmatchcase(name, p) for name in names)), None)
