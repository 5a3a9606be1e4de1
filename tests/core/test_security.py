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

# Modules, builtins, and attributes of any object: `re.compile` is harmless, `os.system` is not.
NOWHERE = {
    *("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp"),
    *("socketserver", "asyncio", "subprocess", "multiprocessing", "concurrent", "ctypes", "pty"),
    *("imaplib", "poplib", "nntplib", "telnetlib", "smtpd", "xmlrpc", "wsgiref", "webbrowser"),
    *("builtins", "runpy", "code", "codeop", "zipimport", "imp"),
    *("eval()", "exec()", "compile()", "__import__()", "allow_pickle"),
    *(".eval", ".exec", ".__import__", ".exec_module", ".load_module", ".run_path", ".run_module"),
    *(".spec_from_file_location", ".spec_from_loader", ".module_from_spec", ".SourceFileLoader"),
    *(".system", ".popen", ".fork", ".forkpty", ".posix_spawn", ".posix_spawnp", ".startfile"),
    *(f".{verb}{end}" for verb in ("exec", "spawn") for end in ("l", "le", "lp", "v", "ve", "vp")),
    *(".urlopen", ".urlretrieve", ".create_connection", ".unpickle"),
}
# What reads or writes files, or imports by a computed name.
LISTED = {
    *("tempfile", "shutil", "mmap", "fileinput", "zipfile", "tarfile", "sqlite3", "dbm"),
    *("glob", "linecache", "gzip", "bz2", "lzma"),
    "huggingface_hub",  # opens connections, and keeps what it downloads
    "orbax",  # reads folders
    *("open()", ".open", ".open_code", ".fdopen", ".read_text", ".read_bytes"),
    *(".write_text", ".write_bytes", ".mkdir", ".makedirs", ".touch", ".unlink", ".rmdir"),
    *(".removedirs", ".rename", ".renames", ".chmod", ".symlink", ".symlink_to", ".link"),
    *(".hardlink_to", ".truncate", ".mkfifo", ".mknod", ".listdir", ".scandir", ".iterdir"),
    *(".glob", ".iglob", ".rglob", ".walk", ".fwalk", "os.replace", "os.remove", ".replace(path)"),
    *(".savefig", ".savez", ".savez_compressed", ".savetxt", ".loadtxt", ".genfromtxt"),
    *(".fromfile", ".tofile", ".memmap", ".imsave", ".save_file", ".load_file", ".serialize_file"),
    *(".safe_open", ".tree_serialise_leaves", ".tree_deserialise_leaves", ".to_csv", ".read_csv"),
    *(f"{numpy}.{verb}" for numpy in ("np", "numpy", "jnp") for verb in ("load", "save")),
    *(".import_module", ".find_spec", ".entry_points", ".resolve_name", ".walk_packages"),
    ".load()",  # of an entry point: `json.load` and its like take what they load
}

CORE, ZOO, PEFT, PROOF, CONVERT, JNO, COMBINE, COMPARE, TRAIN, TESTING, CONDITIONAL = (
    "src/jno/lora",
    *(
        f"plugins/jno-lora-{name}/src/jno_lora_{name}"
        for name in (
            *("zoo", "peft", "proof", "convert", "jno", "combine", "compare", "train", "testing"),
            "conditional",
        )
    ),
)
ALLOWED = {
    # Files that a call names.
    f"{CORE}/_checkpoint/file.py": {
        *("open()", "os.replace", ".unlink", ".chmod", ".safe_open", ".fromfile", ".read_bytes")
    },
    f"{COMBINE}/_figure.py": {".savefig"},
    f"{TESTING}/_new.py": {".mkdir", ".rglob", ".read_text", ".write_text"},
    f"{CONDITIONAL}/testing.py": {"tempfile"},  # its kit
    f"{TESTING}/_checks_class.py": {"tempfile"},  # the kit
    f"{TESTING}/_checks_together.py": {".find_spec", ".import_module"},  # three of our plugins
    f"{TESTING}/_commands.py": {".mkdir", ".glob"},  # the folder of a badge, and a new plugin
    f"{TESTING}/_tiers.py": {".write_text"},  # a badge
    # The metadata of distributions, and plugins that are not blocked.
    f"{CORE}/_registry/plugins.py": {".entry_points", ".load()"},
    f"{CORE}/_commands/doctor.py": {".entry_points"},  # their groups, which `doctor` shows
    f"{TESTING}/_check.py": {".resolve_name"},  # MODULE:NAME of a command line
    f"{CORE}/_compute/lapack.py": {".import_module"},  # two names that stand there
    f"{JNO}/_replacement.py": {".import_module"},  # three modules of jNO, beside a loaded jNO
    f"{ZOO}/_bibtex.py": {".read_text"},  # papers.bib, beside it
    f"{PEFT}/files.py": {".mkdir", ".unlink", "os.replace"},
    f"{PEFT}/__init__.py": {".import_module"},  # its own modules, when they are used
    # The folder that a call names; `eval` is Torch's mode of a model.
    f"{PEFT}/bases.py": {".safe_open"},
    f"{PEFT}/proof.py": {".eval", ".safe_open", ".save_file"},
    f"{PROOF}/_record.py": {
        *(".safe_open", ".read_bytes", ".write_bytes", "open()", "os.replace", "shutil")
    },
    f"{PEFT}/hub.py": {"huggingface_hub"},  # repositories that a call names
    # The source, the base and the result that a call names.
    f"{CONVERT}/_states.py": {".glob"},
    f"{CONVERT}/_orbax.py": {"orbax", ".write_text"},
    f"{CONVERT}/_safetensors.py": {".safe_open", ".memmap", "open()", "os.replace"},
    f"{CONVERT}/_reading.py": {".rename"},  # an option
    f"{CONVERT}/_merge.py": {".iterdir", ".mkdir", "shutil"},
    f"{CONVERT}/_unfinished.py": {  # the folder of an unfinished conversion, beside the result
        *(".mkdir", ".read_text", ".write_text", ".rglob", "shutil", "os.replace")
    },
    f"{COMPARE}/_comparison.py": {"open()"},
    f"{COMPARE}/_commands.py": {".mkdir", ".to_csv", ".resolve_name"},  # MODULE:NAME
    f"{TRAIN}/_training_run.py": {
        *("open()", ".tree_serialise_leaves", ".tree_deserialise_leaves")
    },
}


def effects(text):
    """The names above that a module uses: `module`, `builtin()`, `.attribute`, `owner.attribute`.

    A name that is imported from a module counts as its attribute.
    """
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
            for alias in node.names:
                names |= {f".{alias.name}", f"{node.module}.{alias.name}"}
        elif isinstance(node, ast.Name):
            names.add(f"{node.id}()")
        elif isinstance(node, ast.Attribute):
            names |= {f".{node.attr}", f"{getattr(node.value, 'id', '')}.{node.attr}"}
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            names |= {"allow_pickle"} if ast.unparse(node.value) != "False" else set()
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            is_path = len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)
            if called == "load" and isinstance(node.func, ast.Attribute) and not node.args:
                names.add(".load()")
            if called == "replace" and is_path and not node.keywords:
                names.add(".replace(path)")  # a string's takes two
            if called == "getattr" and isinstance(node.args[1], ast.Constant):
                names.add(f".{node.args[1].value}")
    return names & (NOWHERE | LISTED)


def test_the_sources_do_what_the_security_policy_says():
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        assert effects(path.read_text()) == ALLOWED.get(name, set()), name
    assert {ROOT / name for name in ALLOWED} <= set(SOURCES)


NOTICED = [
    *("import pickle", "from pickle import loads", "import urllib.request", "exec(text)"),
    *("run = eval", "builtins.eval(text)", "os.system('true')", "getattr(os, 'system')('true')"),
    *("from os import popen", "compile(text, '', 'exec')", "np.load(file, allow_pickle=True)"),
    *("open(path)", "os.open(path, 0)", "from os import open as o", "write = path.write_text"),
    *("from os import replace", "path.replace(other)", "from tempfile import mkdtemp"),
    *("from importlib import import_module as i", "plugin = entry.load()"),
]
HARMLESS = [
    *("re.compile(pattern)", "traced.lower().compile()", "'a'.replace('b', 'c')", "load()"),
    *("dataclasses.replace(record, status=1)", "json.load(file)", "adapters.load(path)"),
]


def test_calls_are_noticed_and_harmless_code_is_not():
    assert all(map(effects, NOTICED)) and not any(map(effects, HARMLESS))


def test_the_tests_that_the_security_policy_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / ".github/SECURITY.md").read_text()))
    folders = (ROOT / "tests", *ROOT.glob("plugins/*/tests"))
    files = [file for folder in folders for file in folder.rglob("test_*.py")]
    there = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert named and named <= there, named - there
