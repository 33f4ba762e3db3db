"""Pipelines and their text.

    prune24{method=obs include=encoder.*|decoder.*},qdq,fold-qdq

Commas stand between passes, spaces between options, `|` between the words of an option that
takes several. White space and newlines may stand anywhere between tokens. A value with spaces,
commas, braces, bars or quotes goes into quotes, single or double, in which a backslash escapes a
quote or a backslash. An option without `=` is a Boolean that is set. `@name` stands for a
preset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx24.diagnostics import diagnostic
from onnx24.errors import InputError
from onnx24.passmgr import registry as registry_module
from onnx24.passmgr.base import Pass
from onnx24.passmgr.options import (
    BARE,
    NAME,
    SEPARATOR,
    Word,
    construct,
    did_you_mean,
    field_options,
    to_text,
    unknown_option,
)
from onnx24.passmgr.registry import Registry

_NAME = re.compile(NAME)
_WORD = re.compile(BARE)
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SHOWN = 100  # characters of the text that an error quotes


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    passes: tuple[Pass, ...] = ()

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __str__(self) -> str:
        return ",".join(to_text(instance) for instance in self.passes)

    def rest(self, start: int) -> Pipeline:
        """The passes from position `start` on."""
        return Pipeline(self.passes[start:])

    def check_order(self) -> None:
        """Each pass's `after` against the order here. Where a pass stands several times, its
        first place counts.

        Raises: InputError O24-026, which names the contradiction and proposes an order.
        """
        place: dict[str, int] = {}
        for position, instance in enumerate(self.passes):
            place.setdefault(instance.name, position)
        demands = [
            (name, instance.name)
            for instance in self.passes
            for name in instance.after
            if name in place
        ]
        if all(place[a] < place[b] for a, b in demands):
            return
        import networkx as nx

        earlier = nx.DiGraph()
        earlier.add_nodes_from(place)
        earlier.add_edges_from(demands)
        try:
            cycle = nx.find_cycle(earlier)
        except nx.NetworkXNoCycle:
            pass
        else:
            chain = ", ".join(f"{later!r} after {first!r}" for first, later in cycle)
            raise InputError.of("O24-026", f"the passes' own demands contradict: {chain}", hint="")
        wrong = [(a, b) for a, b in earlier.edges if place[a] > place[b]]
        if not wrong:
            return
        first, later = min(wrong, key=lambda edge: place[edge[1]])
        order = nx.lexicographical_topological_sort(earlier, key=place.__getitem__)
        raise InputError.of(
            "O24-026",
            f"pass {later!r} must stand after {first!r}, and stands before it",
            hint=f"an order that satisfies every pass: {','.join(order)}",
            facts={"pass": later, "after": first},
        )


def parse(
    text: str,
    *,
    registry: Registry | None = None,
    presets: Mapping[str, str] | None = None,
) -> Pipeline:
    """The pipeline that the text spells; `parse(str(p)) == p`.

    registry, presets: this installation's, unless given.
    Raises: InputError O24-020 to O24-024, O24-026, O24-028; the hint quotes the text and marks
    the place, `facts` has line and column, from 1.
    """
    if registry is None:
        registry = registry_module.default()
    pipeline = Pipeline(tuple(_Parser(text, "", registry, presets, ()).pipeline()))
    pipeline.check_order()
    return pipeline


class _Parser:
    """Recursive descent over one text; a preset's text gets a parser of its own.

    within: the presets that are being expanded, outermost first.
    """

    def __init__(
        self,
        text: str,
        label: str,
        registry: Registry,
        presets: Mapping[str, str] | None,
        within: tuple[str, ...],
    ) -> None:
        self.text = text
        self.label = label
        self.registry = registry
        self.presets = presets
        self.within = within
        self.at = 0

    # --- grammar ---------------------------------------------------------------------------
    def pipeline(self) -> list[Pass]:
        self._space()
        if self.at == len(self.text):
            return []
        passes = self._item()
        while self._take(","):
            passes += self._item()
        self._space()
        if self.at < len(self.text):
            raise self._syntax(f"expected ',' or the end, got {self.text[self.at]!r}")
        return passes

    def _item(self) -> list[Pass]:
        if self._take("@"):
            return self._preset()
        name, start = self._name("a pass")
        try:
            cls = self.registry.get(name)
        except InputError as err:
            found = err.diagnostics[0]
            raise self._error(err.code, found.message, start, hint=found.hint) from err
        return [self._pass(cls, start)]

    def _preset(self) -> list[Pass]:
        name, start = self._name("a preset")
        if self.presets is None:
            from onnx24.targets import presets

            self.presets = presets()
        if name in self.within:
            chain = " → ".join(f"@{n}" for n in (*self.within[self.within.index(name) :], name))
            raise self._error("O24-020", f"a preset contains itself: {chain}", start - 1)
        if name not in self.presets:
            message = f"no preset is named {name!r}{did_you_mean(name, self.presets)}"
            raise self._error("O24-024", message, start - 1)
        inner = _Parser(
            self.presets[name],
            f"preset @{name}: ",
            self.registry,
            self.presets,
            (*self.within, name),
        )
        return inner.pipeline()

    def _pass(self, cls: type[Pass], start: int) -> Pass:
        end = self.at
        values: dict[str, object] = {}
        if self._take("{"):
            options = {option.name: option for option in field_options(cls)}
            while not self._take("}"):
                name, name_at = self._name("an option or '}'")
                if name not in options:
                    raise self._error("O24-022", unknown_option(cls, name), name_at)
                option = options[name]
                if option.field in values:
                    raise self._error("O24-020", f"option {name!r} is given twice", name_at)
                try:
                    values[option.field] = option.read(self._value(option.type is bool))
                except ValueError as err:
                    raise self._error("O24-023", f"{cls.name}: {err}", name_at) from err
        try:
            return construct(cls, values)
        except ValueError as err:
            raise self._error("O24-023", f"{cls.name}: {err}", start, end) from err

    def _value(self, is_flag: bool) -> list[Word]:
        """What follows an option's name."""
        if not self._take("="):
            if is_flag:
                return [Word("true")]
            raise self._syntax("expected '=' and a value")
        words = [self._word()]
        while self._take(SEPARATOR):
            words.append(self._word())
        self._space()
        return words

    # --- tokens ----------------------------------------------------------------------------
    def _word(self) -> Word:
        if match := _WORD.match(self.text, self.at):
            self.at = match.end()
            return Word(match[0])
        if match := _QUOTED.match(self.text, self.at):
            self.at = match.end()
            body = match[2] if match[1] is None else match[1]
            return Word(_ESCAPE.sub(r"\1", body), quoted=True)
        if self.text.startswith(("'", '"'), self.at):
            raise self._syntax("this quote is never closed")
        raise self._syntax('expected a word; an empty one is written ""')

    def _name(self, what: str) -> tuple[str, int]:
        """A name and where it starts."""
        self._space()
        match = _NAME.match(self.text, self.at)
        if not match:
            got = repr(self.text[self.at]) if self.at < len(self.text) else "the end"
            raise self._syntax(f"expected {what}, got {got}")
        self.at = match.end()
        return match[0], match.start()

    def _take(self, token: str) -> bool:
        """Consume `token`, and the white space around it, if it comes next."""
        start = self.at
        self._space()
        if not self.text.startswith(token, self.at):
            self.at = start
            return False
        self.at += len(token)
        self._space()
        return True

    def _space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    # --- errors ----------------------------------------------------------------------------
    def _syntax(self, message: str) -> InputError:
        return self._error("O24-020", message, self.at, self.at + 1)

    def _error(
        self, code: str, message: str, start: int, end: int | None = None, *, hint: str = ""
    ) -> InputError:
        """An error at text[start:end]; `end` defaults to where the parser stands, `hint` to the
        code's."""
        end = self.at if end is None else end
        end = max(start + 1, start + len(self.text[start:end].rstrip()))
        line_start = self.text.rfind("\n", 0, start) + 1
        line = self.text[line_start:].split("\n", 1)[0]
        column = start - line_start
        width = max(1, min(end, line_start + len(line)) - start)
        left = max(0, column - _SHOWN // 2)
        shown = line[left : left + _SHOWN].replace("\t", " ")
        excerpt = f"{shown}\n  {' ' * (column - left)}{'^' * width}"
        hint = hint or diagnostic(code, "").hint
        return InputError.of(
            code,
            f"{self.label}{message}",
            hint=f"{excerpt}\n  {hint}" if hint else excerpt,
            facts={"line": self.text.count("\n", 0, start) + 1, "column": column + 1},
        )
