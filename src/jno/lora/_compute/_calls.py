"""Calls of one function on many layers: small layers of one form are computed together."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ._program import TOGETHER, Program, attempt, program_for
from ._signature import Form, TracedError, beside, form_of


class Calls:
    """The calls of `function(*shared, *item)` for many items, each made when it is asked for.

    **Arguments:**

    - `function`, `shared`, `items`: as for `call_compiled`, which each call is equivalent to.
    - `alone`: what is called with an item instead if it is traced, sharded, or not hashable.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        shared: tuple[Any, ...],
        items: Sequence[tuple[Any, ...]],
        alone: Callable[[tuple[Any, ...]], Any],
    ):
        self.function, self.shared, self.items, self.alone = function, shared, items, alone
        # Lists in step with `items`: a model of thousands of layers would have the garbage
        # collector look through as many small objects again and again.
        self.arrays: list[list[Any] | None] = [None] * len(items)
        self.groups: list[_Group | None] = [None] * len(items)
        for form, members in self._by_form().items():
            program, common = self._program(form)
            if program is None:
                continue
            size = TOGETHER if program.is_small else 1
            for start in range(0, len(members), size):
                group = _Group(program, common, members[start : start + size])
                for index in group.members:
                    self.groups[index] = group

    def result(self, index: int) -> Any:
        """What the function returns for `items[index]`. To be asked for once."""
        item, group = self.items[index], self.groups[index]
        if group is None:
            return self.alone(item)
        return attempt(
            lambda: group.result(index, self.arrays), lambda: self.function(*self.shared, *item)
        )

    def _by_form(self) -> dict[Form, list[int]]:
        """The items that may be compiled for, by their form."""
        members: dict[Form, list[int]] = {}
        for index, item in enumerate(self.items):
            try:
                form, self.arrays[index] = form_of(item)
                members.setdefault(form, []).append(index)
            except (TracedError, TypeError):  # a static field that cannot be hashed
                continue
        return members

    def _program(self, own: Form) -> tuple[Program | None, list[Any]]:
        """The program for items of the form `own`, and the arrays of `shared` where it runs."""
        if not own.is_sharded:
            try:
                form, arrays = form_of(jax.tree.map(lambda leaf: beside(leaf, own), self.shared))
                return program_for(self.function, form, own), arrays
            except Exception:  # raised again, with the item's path, when it is called
                pass
        return None, []


class _Group:
    """Items that one run of a program computes."""

    def __init__(self, program: Program, shared: list[Any], members: list[int]):
        self.program, self.shared, self.members = program, shared, members
        self.results: dict[int, Any] | None = None
        self.error: Exception | None = None

    def result(self, index: int, arrays: list[Any]) -> Any:
        if self.error is not None:
            raise self.error
        if self.results is None:
            try:
                self.results = dict(zip(self.members, self._compute(arrays), strict=True))
            except Exception as err:
                self.error = err
                raise
        # Handed over, not kept: the memory is the caller's to free.
        return self.results.pop(index)

    def _compute(self, arrays: list[Any]) -> list[Any]:
        owns = [arrays[index] for index in self.members]
        if self.program.is_small:
            return self.program.together(self.shared, owns)
        return [self.program.alone(self.shared, *owns)]
