"""Tables: as text, as HTML in a notebook, and by rich, which is imported when a table prints."""

import abc
import dataclasses
import html
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .grouping import grouped

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Row = TypeVar("Row")

_WIDEST = 60  # characters of a cell in a line, in all columns but the first


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text, with a heading and a justification (`"left"`, `"right"`) for each column."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __rich__(self) -> "RichTable":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = RichTable(title=Text(self.title, style="table.title"), box=box.SIMPLE_HEAD)
        shown.caption = Text(self.caption, style="table.caption") if self.caption else None
        shown.title_justify = shown.caption_justify = "left"
        for index, (heading, justify) in enumerate(self.columns):
            # Paths, in the first column, stay whole, so that they can be copied and searched.
            width = _WIDEST if index else None
            shown.add_column(Text(heading), justify=justify, overflow="fold", max_width=width)  # pyright: ignore[reportArgumentType]
        for row in self.rows:
            shown.add_row(*map(Text, row))  # as `Text`, because names of layers are not markup
        return shown

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        # The width of a terminal does not matter: the text goes into logs and files. Without
        # `force_jupyter=False`, rich would show the table in a notebook as well.
        console = Console(file=out, width=10_000, force_terminal=False, force_jupyter=False)
        # Rich would fold the title and the caption to the width of the table.
        shown = self.__rich__()
        shown.title = shown.caption = None
        console.print(shown)
        lines = [self.title, *out.getvalue().splitlines(), self.caption]
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    def _repr_html_(self) -> str:
        # Inline styles, because some viewers remove style sheets.
        head = "".join(_cell("th", *column) for column in self.columns)
        justified = [justify for _, justify in self.columns]
        rows = ("".join(map(_cell, ["td"] * len(row), row, justified)) for row in self.rows)
        body = "\n".join(f"<tr>{row}</tr>" for row in (head, *rows))
        return (
            f'<div style="overflow-x:auto">\n<div><b>{html.escape(self.title)}</b></div>\n'
            f'<table style="border-collapse:collapse;margin:0.5em 0">\n{body}\n</table>\n'
            f"<div>{html.escape(self.caption)}</div>\n</div>"
        )


class Printed(abc.ABC, Generic[Row]):
    """Rows that print as a table: by rich, as text, and as HTML in a notebook.

    A subclass is a dataclass (or a module) with the field `rows`.
    """

    rows: tuple[Row, ...]

    @abc.abstractmethod
    def _table(self) -> Table:
        """The table to print."""

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __rich__(self) -> "RichTable":
        return self._table().__rich__()

    def __str__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def table(
    title: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    *,
    by_path: bool = False,
) -> Table:
    """A table. `columns` are (heading, justification) pairs.

    - `by_path`: whether the first column has paths. If so, rows that differ only in the indices of
        their paths are joined.
    """
    if by_path:
        groups = grouped((path, tuple(cells)) for path, *cells in rows)
        rows = [(path, *cells) for path, _, cells in groups]
        if any(count > 1 for _, count, _ in groups):
            columns = [columns[0], ("", "right"), *columns[1:]]
            rows = [(path, f"x {n:,}" if n > 1 else "", *cells) for path, n, cells in groups]
    cells = (tuple(map(_printable, row)) for row in rows)
    return Table(_printable(title), tuple(columns), tuple(cells), _printable(caption))


def print_table(shown: Table | Printed[Any]) -> None:
    """Print a table: with colours in a terminal, and as plain text of full width in a pipe."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(shown)
    else:
        print(shown)


def _printable(text: str) -> str:
    """`text`, which may come from a file, without terminal control characters."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _cell(tag: str, text: str, justify: str) -> str:
    return f'<{tag} style="text-align:{justify};padding:0.1em 0.8em">{html.escape(text)}</{tag}>'
