"""The table of PEFT's types in docs/peft-types.md, from what the package knows of them.

python -m peft_cases.listing            # from plugins/jno-lora-peft/tests: is the page up to date?
python -m peft_cases.listing --write    # writes it
"""

import re
import sys
from pathlib import Path

from jno_lora_peft.config import REASONS
from jno_lora_peft.types import TYPES

PAGE = Path(__file__).parents[4] / "docs/peft-types.md"
_WRITTEN = {
    "BEFT": "if unchanged since loading",
    "TRAINABLE_TOKENS": "if unchanged since loading",
    "LN_TUNING": "if unchanged since loading",
}


def table() -> str:
    """A row for each type: whether it is read and written, and how it is held, or why not."""
    rows = ["| type | read | written | here, or why not |", "|---|---|---|---|"]
    for name, kind in sorted(TYPES.items()):
        written = _WRITTEN.get(name, "yes" if kind.variants else "as LoRA")
        held = " ".join(str(type(kind).__doc__).split()).removesuffix(".")
        rows.append(f"| `{name}` | yes | {written} | {held} |")
    rows += [f"| `{name}` | no | no | {reason} |" for name, reason in sorted(REASONS.items())]
    return "\n".join(rows) + "\n"


def page() -> str:
    new, count = re.subn(
        r"(?<=<!-- types -->\n).*?(?=<!-- /types -->)",
        lambda _: table(),
        PAGE.read_text(),
        flags=re.S,
    )
    assert count == 1
    return new


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} is out of date: python -m peft_cases.listing --write")
