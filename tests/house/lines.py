"""The lines of code of each distribution beside its budget: `python tests/house/lines.py`.

Docstrings, comments and blank lines do not count. The budgets are in `budgets.toml`.
"""

import ast
import io
import pathlib
import tokenize
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
BUDGETS = tomllib.loads((ROOT / "tests/house/budgets.toml").read_text())

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_LAYOUT.add(tokenize.ENDMARKER)


def lines_of_code(text: str) -> int:
    """The lines of a module that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_block = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if is_block and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def count(sources: pathlib.Path) -> int:
    """The lines of code of all modules below a folder."""
    return sum(lines_of_code(path.read_text("utf-8")) for path in sources.rglob("*.py"))


def counts() -> dict[str, int]:
    """The lines of code of each distribution."""
    plugins = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    folders = {"jno-lora": ROOT, **{path.name: path for path in plugins}}
    return {name: count(path / "src") for name, path in folders.items()}


if __name__ == "__main__":
    sizes = counts()
    for name, lines in {**sizes, "product": sum(sizes.values())}.items():
        print(f"{name:22} {lines:6,} of {BUDGETS.get(name, sum(BUDGETS.values())):6,}")
