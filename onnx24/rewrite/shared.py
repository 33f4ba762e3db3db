"""What rewrites share: a weight is one site; its record of 2:4 follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

__all__ = ["admitted_by_weight", "move_claims", "move_claims_of_products"]


class WeightSite(Protocol):
    """A product or a convolution of a view: its weight's tensor, and where it stands."""

    weight: Any

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...


S = TypeVar("S", bound=WeightSite)


def admitted_by_weight(sites: Sequence[S], admit: Callable[[str], bool]) -> list[S]:
    """A weight is one site: its readers are rewritten together."""
    asked: dict[int, bool] = {}
    for site in sites:
        if id(site.weight) not in asked:
            asked[id(site.weight)] = admit(f"{site.scope}::{site.name}".lstrip(":"))
    return [site for site in sites if asked[id(site.weight)]]


def move_claims_of_products(
    model: Model,
    moved: Iterable[tuple[ValueKey, ValueKey]],
    uses: Callable[[], WeightUses],
    *,
    known_24: bool = False,
) -> None:
    """A record follows the products to a new form of their weight, (old, new), and stays with the
    old one too where a product still reads that.

    uses: of the model as it is now, asked for where something moves. known_24: the new forms are
    2:4 and recorded whether or not the old ones were.
    """
    claimed = set(model.claims.keys())
    moving = [(old, new) for old, new in moved if known_24 or old in claimed]
    if not moving:
        return
    model.claims.update([new for _, new in moving])
    found = uses()
    left = (old for old, _ in moving if old not in found.uses or not found.products(old))
    model.claims.discard(*left)


def move_claims(model: Model, sites: Sequence[WeightSite]) -> None:
    """A constant that only a body reads is defined there now."""
    if not model.claims.keys():
        return
    index = model.index()
    claimed = set(model.claims.keys())
    for site in sites:
        new = index.resolve(site.name, site.scope)
        old = [key for key in claimed if key.name == site.name and key not in index.initializers]
        for key in old if new is not None else []:
            model.claims.move(key, new)  # type: ignore[arg-type]
