"""The letters of an array's axes, from the uses that a `Record` holds."""

from collections.abc import Mapping, Sequence

from ._watched import Record

_SEEN_IN = {
    **dict.fromkeys(("add", "sub", "add_any"), "added"),
    **dict.fromkeys(("mul", "div"), "multiplied entry by entry"),
    "broadcast_in_dim": "repeated, to be added or multiplied entry by entry",
}


def letters_of(
    ndim: int, record: Record, operations: Sequence[str]
) -> tuple[str | None, str | None]:
    """The letters of an array, or `None` and the reason.

    - `operations`: the names of the operations that used the array and are not in the record.
    """
    if not record.products:
        uses = ", ".join(dict.fromkeys(_SEEN_IN.get(name, name) for name in operations))
        return None, f"not in a product: {uses}" if uses else "not in a product"
    letters = _combined(record)
    if letters is None:
        seen = dict.fromkeys(_shown(ndim, product) for product in record.products)
        return None, f"uses that contradict each other: {' and '.join(seen)}"
    looked_up = {letters.get(axis) for axis in record.looked_up}
    if looked_up == {"o"}:
        letters = _swapped(letters)
    if looked_up in ({"o"}, {"i"}):
        letters |= dict.fromkeys(record.looked_up, "e")
    text = _shown(ndim, letters)
    # An axis of size one, or an axis that is summed alone, becomes the missing letter.
    text = text.replace("-", "o" if "o" not in text else "i", 1).replace("-", "i")
    if "o" not in text:
        return None, f"a product that keeps none of its axes ({text})"
    if not {*text} & {*"ie"}:
        return None, f"a product that sums over none of its axes ({text})"
    return text, None


def _combined(record: Record) -> dict[str, str] | None:
    """The letters of all uses together, by axis; `None` if two uses contradict each other."""
    letters = dict.fromkeys(record.stacked, "s")
    for product in record.products:
        # A product from the other side has inputs and outputs the other way round.
        candidates = (product, _swapped(product))
        fitting = next((c for c in candidates if _agree(letters, c)), None)
        if fitting is None or "?" in fitting.values():
            return None
        letters.update(fitting)
    return letters


def _agree(letters: Mapping[str, str], product: Mapping[str, str]) -> bool:
    return all(letters.get(axis, letter) == letter for axis, letter in product.items())


def _swapped(letters: Mapping[str, str]) -> dict[str, str]:
    return {axis: {"i": "o", "o": "i"}.get(letter, letter) for axis, letter in letters.items()}


def _shown(ndim: int, letters: Mapping[str, str]) -> str:
    return "".join(letters.get(str(axis), "-") for axis in range(ndim))
