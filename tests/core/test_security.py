"""What SECURITY.md says of the sources: no pickle, no evaluation, no network, no stray files."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
UNSAFE_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp"),
    *("subprocess", "multiprocessing", "ctypes"),
}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
# Where files are opened, each because a call names them.
OPENS_FILES = {"_checkpoint", "peft", "_commands", "_demo", "_comparison"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_sources_do_what_the_security_policy_says(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""] if node.level == 0 else []
        else:
            modules = []
        assert not {module.partition(".")[0] for module in modules} & UNSAFE_MODULES, modules
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in UNSAFE_CALLS, f"line {node.lineno}: {node.func.id}(...)"
            if node.func.id == "open":
                assert OPENS_FILES & {*path.parts, path.stem}, f"line {node.lineno}: open(...)"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"
