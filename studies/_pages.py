"""Pages of the documentation with sections that a study writes."""

import pathlib
import re
import textwrap
from collections.abc import Mapping

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "evidence"


def fill(page: pathlib.Path, sections: Mapping[str, str]) -> None:
    """Write each section between its two comments, `<!-- name -->` and `<!-- /name -->`."""
    text = page.read_text()
    for name, content in sections.items():
        text, count = re.subn(
            rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)",
            lambda _, content=content: content,
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page} should have one section between `{name}` comments: {count}")
    page.write_text(text)


def filled(text: str) -> str:
    """A paragraph in lines of at most 100 characters."""
    return textwrap.fill(text, 100, break_on_hyphens=False) + "\n"


def percent(share: float) -> str:
    """A fraction as per cent, with the digits that matter."""
    digits = 0 if share >= 0.1 else 1 if share >= 0.01 else 2
    return f"{100 * share:.{digits}f} %"
