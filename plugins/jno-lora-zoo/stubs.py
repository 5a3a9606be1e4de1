"""Writes the stubs of the adapters, which are made at run time, for type checkers.

    python plugins/jno-lora-zoo/stubs.py    # the stubs of every plugin

`adapters.pyi` of a plugin has a class for each method on each of the plugin's layer kinds, and the
zoo's `methods/__init__.pyi` has the constructor of each method. All names are read from the
sources, which are not imported: a build has no JAX.

The stubs are not committed. `hatch_build.py` of each plugin writes them before a build, also before
an editable install, so that wheels and sdists hold them.
"""

import ast
import functools
import pathlib
import textwrap

PLUGINS = pathlib.Path(__file__).parents[1]
ZOO = PLUGINS / "jno-lora-zoo/src/jno_lora_zoo"
HEADER = "# Written by plugins/jno-lora-zoo/stubs.py.\n"


def write(project: pathlib.Path) -> None:
    """Write the stubs of one plugin, if it has adapters that `adapters_for` makes."""
    for path, text in stubs_of(project).items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def stubs_of(project: pathlib.Path) -> dict[pathlib.Path, str]:
    """The text of each stub of a plugin."""
    stubs = {
        path.with_suffix(".pyi"): _adapters(path) for path in project.glob("src/*/adapters.py")
    }
    if ZOO.is_relative_to(project):
        stubs[ZOO / "methods/__init__.pyi"] = _methods()
    return stubs


def _adapters(path: pathlib.Path) -> str:
    """The stub of a module: a class for each method and each kind in a call of `adapters_for`."""
    module = ast.parse(path.read_text("utf-8"))
    kinds = [
        node.args[0].id
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "adapters_for"
    ]
    imports = [_only(kinds, node) for node in module.body if isinstance(node, ast.ImportFrom)]
    methods = _imports_of_methods()
    home = ".methods" if path.parent == ZOO else "jno_lora_zoo"
    several = {kind for kind in kinds if _has_several_matrices(kind, path.parent)}
    used = [*methods, *(["MethodPerMatrix"] if several else [])]
    classes = {
        # An adapter of several matrices has the fields of the method, and is not the method.
        f"{method}{kind.removesuffix('Layer')}": (
            f"MethodPerMatrix, {kind}" if kind in several else f"{method}, {kind}"
        )
        for kind in kinds
        for method in methods
    }
    return "\n".join(
        [
            f"{HEADER}from {home} import {', '.join(used)}",
            *filter(None, imports),
            "from jno.lora.extending import ClassesByName",
            _exports(classes),
            "ADAPTERS: ClassesByName",
            # The constructor is the method's: none is to be derived from the fields.
            *(f"class {name}({bases}, init=False): ..." for name, bases in classes.items()),
            "",
        ]
    )


def _has_several_matrices(kind: str, package: pathlib.Path) -> bool:
    """Whether a layer kind that the modules of `package` define is a `MatricesLayer`."""
    modules = (ast.parse(path.read_text("utf-8")) for path in package.glob("*.py"))
    bases = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for module in modules
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
    return any(
        base == "MatricesLayer" or _has_several_matrices(base, package)
        for base in bases.get(kind, [])
    )


def _only(names: list[str], imported: ast.ImportFrom) -> str:
    """An import without the names that are not among `names`; empty if none is left."""
    aliases = [alias for alias in imported.names if alias.name in names]
    return ast.unparse(ast.ImportFrom(imported.module, aliases, imported.level)) if aliases else ""


def _methods() -> str:
    """The stub of the zoo's methods: each with the constructor that `Method` makes for it."""
    modules = _imports_of_methods()
    return "\n".join(
        [
            f"{HEADER}from typing import Any",
            "from .._method import Method",
            *(f"from .{module} import {name} as _{name}" for name, module in modules.items()),
            _exports(["METHODS", *modules]),
            "METHODS: tuple[type[Method], ...]",
            *map(_constructor, modules),
            "",
        ]
    )


def _constructor(method: str) -> str:
    options = "".join(f", {name}: Any = ..." for name in ["adapter_dtype", *options_of(method)])
    alpha = ", alpha: float" if _has_alpha(method) else ""
    return (
        f"class {method}(_{method}):\n"
        f"    def __init__(self, base: Any, rank: int{alpha}, *, key: Any{options}) -> None: ..."
    )


def _has_alpha(method: str) -> bool:
    """Whether no class among a method and its bases has the line `has_alpha = False`."""
    definition = _classes().get(method)
    if definition is None:
        return True
    bases = [base.id for base in definition.bases if isinstance(base, ast.Name)]
    lines = [ast.unparse(node) for node in definition.body]
    return "has_alpha = False" not in lines and all(map(_has_alpha, bases))


def options_of(method: str) -> list[str]:
    """The options of a method: the keyword-only parameters of `start` and `_initial_fields`."""
    functions: dict[str, list[str]] = {}
    classes = [method]
    while classes:
        definition = _classes().get(classes.pop(0))
        if definition is None:
            continue
        classes = [*(base.id for base in definition.bases if isinstance(base, ast.Name)), *classes]
        for node in definition.body:
            if isinstance(node, ast.FunctionDef) and node.name not in functions:
                functions[node.name] = [argument.arg for argument in node.args.kwonlyargs]
    return [*functions["start"], *functions["_initial_fields"]]


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """The definition of each class of the zoo, by name."""
    modules = (ast.parse(path.read_text("utf-8")) for path in ZOO.rglob("*.py"))
    statements = (node for module in modules for node in module.body)
    return {node.name: node for node in statements if isinstance(node, ast.ClassDef)}


def _imports_of_methods() -> dict[str, str]:
    """The module of each method of the zoo, by the method's name."""
    package = ast.parse((ZOO / "methods/__init__.py").read_text("utf-8"))
    return {
        alias.name: str(node.module)
        for node in package.body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }


def _exports(names: list[str] | dict[str, str]) -> str:
    listed = textwrap.fill(", ".join(map(repr, names)), 98)
    return f"__all__ = [\n{textwrap.indent(listed, '    ')},\n]"


if __name__ == "__main__":
    for plugin in PLUGINS.iterdir():
        write(plugin)
