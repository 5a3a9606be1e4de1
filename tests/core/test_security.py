"""SECURITY.md is true of the sources: no pickle, no evaluation, no stray network or files.

Every module is parsed. Code that reads or writes files, or imports by a computed name, may only
stand where it is listed below. Code that evaluates, unpickles, starts programs or opens connections
may not stand anywhere.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])

NOWHERE_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp"),
    *("socketserver", "asyncio", "subprocess", "multiprocessing", "concurrent", "ctypes", "pty"),
    *("imaplib", "poplib", "nntplib", "telnetlib", "smtpd", "xmlrpc", "wsgiref", "webbrowser"),
    *("builtins", "runpy", "code", "codeop", "zipimport", "imp"),
}
NOWHERE_BUILTINS = {"eval", "exec", "compile", "__import__"}
NOWHERE = {  # as attributes of anything: `re.compile` is harmless, `os.system` is not
    *("eval", "exec", "__import__", "exec_module", "load_module", "run_path", "run_module"),
    *("spec_from_file_location", "spec_from_loader", "module_from_spec", "SourceFileLoader"),
    *("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"),
    *(f"{start}{end}" for start in ("exec", "spawn") for end in ("l", "le", "lp", "v", "ve", "vp")),
    *("urlopen", "urlretrieve", "create_connection", "unpickle"),
}
# Modules that read or write files, and attributes of whatever module or path.
FILE_MODULES = {"tempfile", "shutil", "mmap", "fileinput", "zipfile", "tarfile", "sqlite3", "dbm"}
FILE_MODULES |= {"glob", "linecache", "gzip", "bz2", "lzma"}
# A library that opens connections, and keeps what it downloads.
FILE_MODULES |= {"huggingface_hub"}
# A library that reads folders.
FILE_MODULES |= {"orbax"}
FILES = {
    *("open", "open_code", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes"),
    *("mkdir", "makedirs", "touch", "unlink", "rmdir", "removedirs", "rename", "renames"),
    *("chmod", "symlink", "symlink_to", "link", "hardlink_to", "truncate", "mkfifo", "mknod"),
    *("listdir", "scandir", "iterdir", "glob", "iglob", "rglob", "walk", "fwalk"),
    *("savefig", "savez", "savez_compressed", "savetxt", "loadtxt", "genfromtxt", "fromfile"),
    *("tofile", "memmap", "imsave", "save_file", "load_file", "serialize_file", "safe_open"),
    *("tree_serialise_leaves", "tree_deserialise_leaves", "to_csv", "read_csv"),
}
# Names that others use as well (`str.replace`, `json.load`), so only of these.
FILES_OF = {
    "os": {"replace", "remove"},
    "np": {"load", "save"},
    "numpy": {"load", "save"},
    "jnp": {"load", "save"},
}
# `load` without arguments is that of an entry point; `json.load` and its like take what they load.
IMPORTS = {"import_module", "find_spec", "entry_points", "resolve_name", "walk_packages", "load"}

KIT = "plugins/jno-lora-testing/src/jno_lora_testing"
CORE, WRITING = "src/jno/lora", {"open", "os.replace", "unlink", "chmod"}
ZOO = "plugins/jno-lora-zoo/src/jno_lora_zoo"
PEFT = "plugins/jno-lora-peft/src/jno_lora_peft"
JNO = "plugins/jno-lora-jno/src/jno_lora_jno"
COMPARE = "plugins/jno-lora-compare/src/jno_lora_compare"
TRAIN = "plugins/jno-lora-train/src/jno_lora_train"
ALLOWED = {
    # Files that a call names.
    f"{CORE}/_checkpoint/_file.py": {*WRITING, "safe_open", "fromfile", "read_bytes"},
    "plugins/jno-lora-combine/src/jno_lora_combine/_figure.py": {"savefig"},
    "plugins/jno-lora-testing/src/jno_lora_testing/_new.py": {
        "mkdir",
        "rglob",
        "read_text",
        "write_text",
    },
    "plugins/jno-lora-conditional/src/jno_lora_conditional/testing.py": {"tempfile"},  # its kit
    f"{KIT}/_checks_class.py": {"tempfile"},  # the kit
    # The metadata of distributions, and plugins that are not blocked.
    f"{CORE}/_registry/_plugins.py": {"entry_points", "load"},
    f"{CORE}/_moved.py": {"import_module"},  # names of our plugins
    f"{CORE}/_registry/_inside_jno.py": {"load"},  # plugins that are not blocked, inside jNO
    f"{CORE}/_commands/doctor.py": {"entry_points"},  # their groups, which `doctor` shows
    f"{KIT}/_check.py": {"resolve_name"},  # MODULE:NAME of a command line
    f"{CORE}/_compute/_lapack.py": {"import_module"},  # two names that stand there
    f"{JNO}/_replacement.py": {"import_module"},  # three modules of jNO, beside a loaded jNO
    f"{CORE}/__init__.py": {"import_module"},  # a name that stands there
    f"{ZOO}/_bibtex.py": {"read_text"},  # papers.bib, beside it
    f"{PEFT}/files.py": {"mkdir", "os.replace", "unlink"},
    f"{PEFT}/hub.py": {"huggingface_hub"},  # repositories that a call names
    f"{PEFT}/states/loading.py": {"orbax"},  # folders that a call names
    f"{COMPARE}/_comparison.py": {"open"},
    f"{COMPARE}/_commands.py": {"mkdir", "to_csv", "resolve_name"},  # MODULE:NAME
    f"{TRAIN}/_training_run.py": {"open", "tree_serialise_leaves", "tree_deserialise_leaves"},
}


def effects(text):
    """The names above that a module uses, and the lines of code that may not stand anywhere."""
    found, forbidden = set(), []
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = {call.func for call in calls if call.args or call.keywords}

    def use(node, name, owner):
        if name in NOWHERE:
            forbidden.append(f"line {node.lineno}: {name}")
        elif name == "load" and node in given and not owner.endswith("EntryPoint"):
            found.update({f"{owner}.load"} if name in FILES_OF.get(owner, ()) else ())
        elif name in FILES | IMPORTS:
            found.add(name)
        elif name in FILES_OF.get(owner, ()):
            found.add(f"{owner}.{name}")

    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            is_absolute = isinstance(node, ast.Import) or node.level == 0
            of = node.module if isinstance(node, ast.ImportFrom) else None
            for alias in node.names if is_absolute else ():
                module = (of or alias.name).partition(".")[0]
                if module in NOWHERE_MODULES:
                    forbidden.append(f"line {node.lineno}: import {module}")
                found |= {module} & FILE_MODULES
                if of is not None:
                    use(node, alias.name, of)
        elif isinstance(node, ast.Name):  # imported names are seen where they are imported
            if node.id in NOWHERE_BUILTINS:
                forbidden.append(f"line {node.lineno}: {node.id}")
            found |= {node.id} & {"open"}
        elif isinstance(node, ast.Attribute):
            use(node, node.attr, ast.unparse(node.value))
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            is_one = len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)
            if called == "replace" and is_one and not node.keywords:
                found.add("replace")  # of a path: a string's takes two
            if ast.unparse(node.func) == "getattr" and len(node.args) > 1:
                name = node.args[1]
                if isinstance(name, ast.Constant):
                    use(node, name.value, ast.unparse(node.args[0]))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            forbidden += ["allow_pickle"] * (ast.unparse(node.value) != "False")
    return found, forbidden


def test_the_sources_do_what_the_security_policy_says():
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        assert effects(path.read_text()) == (ALLOWED.get(name, set()), []), name
    assert {ROOT / name for name in ALLOWED} <= set(SOURCES)


FORBIDDEN = [
    *("import pickle", "from pickle import loads", "import urllib.request", "exec(text)"),
    *("run = eval", "builtins.eval(text)", "os.system('true')", "getattr(os, 'system')('true')"),
    *("from os import popen", "compile(text, '', 'exec')", "np.load(file, allow_pickle=True)"),
]
NOTICED = {
    "open": ["open(path)", "os.open(path, 0)", "path.open()", "from os import open as o"],
    "write_text": ["Path(x).write_text('')", "write = path.write_text"],
    "os.replace": ["os.replace(a, b)", "from os import replace"],
    "replace": ["path.replace(other)"],
    "tempfile": ["import tempfile", "from tempfile import mkdtemp"],
    "import_module": ["importlib.import_module(x)", "from importlib import import_module as i"],
    "load": ["plugin = entry.load()", "EntryPoint.load(entry)", "getattr(entry, 'load')()"],
    None: [
        *("re.compile(pattern)", "traced.lower().compile()", "'a'.replace('b', 'c')", "load()"),
        *("dataclasses.replace(record, status=1)", "json.load(file)", "adapters.load(path)"),
    ],
}


def test_calls_are_noticed_and_harmless_code_is_not():
    assert all(effects(text)[1] for text in FORBIDDEN)
    for name, texts in NOTICED.items():
        for text in texts:
            assert effects(text) == ({name} - {None}, []), text


def test_the_tests_that_the_security_policy_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text()))
    folders = (ROOT / "tests", *ROOT.glob("plugins/*/tests"))
    files = [file for folder in folders for file in folder.rglob("test_*.py")]
    there = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert named and named <= there, named - there
