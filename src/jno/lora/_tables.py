"""Tables for terminals, by rich (imported when a table is printed, not before)."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(
    title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], caption: str = ""
) -> "Table":
    """A rich table. `columns` are (heading, justification) pairs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, caption=caption or None, box=box.SIMPLE_HEAD, title_justify="left")
    made.caption_justify = "left"
    for heading, justify in columns:
        made.add_column(heading, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    for row in rows:
        made.add_row(*map(Text, row))  # a path may hold what looks like markup
    return made


def as_text(made: "Table") -> str:
    """The table as plain text, as wide as it needs to be."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=200, no_color=True, force_terminal=False, markup=False)
    console.print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")
