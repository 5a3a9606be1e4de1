"""The possible mutants: each place where an operator of Cosmic Ray could change the code."""

import ast
import itertools
import pathlib
import random
import tempfile

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec


def sample(root: pathlib.Path, folders: list[str], size: int, seed: int) -> list[MutationSpec]:
    """A random sample of all mutations, the same for a seed as long as the sources are."""
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    with (
        tempfile.TemporaryDirectory() as folder,
        use_db(pathlib.Path(folder) / "all.sqlite", WorkDB.Mode.create) as work,
    ):
        init(paths, work, {})
        found = [mutation for item in work.work_items for mutation in item.mutations]
    ignored = {path: _ignored(ast.parse(path.read_text())) for path in paths}
    # Sorted, because the database gives them in no particular order.
    mutants = sorted(
        (m for m in found if not _is_in(m, ignored[m.module_path])),
        key=lambda m: (str(m.module_path), m.start_pos, m.operator_name, m.occurrence),
    )
    random.Random(seed).shuffle(mutants)
    return list(itertools.islice(filter(_is_code, mutants), size))


def _is_code(mutation: MutationSpec) -> bool:
    """Whether a mutant is one at all: the `*` among parameters, say, is not a product."""
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    mutant = mutate_code(mutation.module_path.read_text(), operator, mutation.occurrence)
    try:
        compile(mutant, str(mutation.module_path), "exec")
    except SyntaxError:
        return False
    return True


Span = tuple[tuple[int, int], tuple[int, int]]


def _ignored(tree: ast.Module) -> list[Span]:
    """Where mutants would only change the score.

    Annotations (`int | None`, of which most mutants fail when the module is imported), what only
    type checkers read, `__all__`, and `NotImplementedError`.
    """
    nodes: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.append(node.returns)
        if isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.append(node)
        if isinstance(node, ast.Assign) and _is_alias_or_all(node):
            nodes.append(node)
        if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
            nodes.append(node)
    return [
        ((n.lineno, n.col_offset), (n.end_lineno or n.lineno, n.end_col_offset or 0))
        for n in nodes
        if isinstance(n, ast.stmt | ast.expr)
    ]


def _is_alias_or_all(node: ast.Assign) -> bool:
    """Whether this gives a name to a type (`Index = tuple[int, ...] | None`) or is `__all__`."""
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    is_type = isinstance(node.value, ast.Subscript | ast.BinOp) and "|" in ast.unparse(node.value)
    return names == ["__all__"] or (is_type and all(name[:1].isupper() for name in names))


def _is_in(mutation: MutationSpec, spans: list[Span]) -> bool:
    return any(start <= mutation.start_pos and mutation.end_pos <= end for start, end in spans)
