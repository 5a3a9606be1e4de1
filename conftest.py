"""The settings of every test: strict promotion, checked shapes, warnings as errors, 8 devices."""

import ast
import functools
import gc
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

# XLA ends the process at a flag that it does not know, and later ones do not know this one.
_OLDER = tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11)

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Thousands of small programs are compiled, each to run once or twice.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false" if _OLDER else "",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Decompositions in a loop can make OpenBLAS's threads spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
for variable in ("JNO_LORA_BLOCK", "JNO_LORA_STRICT"):
    os.environ.pop(variable, None)

import jaxtyping

if os.environ.get("JNO_LORA_TEST_COVERAGE"):
    # Private, but without it `coverage` reports branches to nested functions as never taken: the
    # decorators that the hook adds are on line 1. Without a line they get the function's.
    _typechecker: Any = vars(jaxtyping._import_hook)["Typechecker"]
    _get_ast = _typechecker.get_ast

    def _without_lines(self: Any) -> ast.AST:
        decorator = _get_ast(self)
        for node in ast.walk(decorator):
            vars(node).pop("lineno", None)
            vars(node).pop("end_lineno", None)
        return decorator

    _typechecker.get_ast = _without_lines


def share_checkers() -> None:
    """Makes the checkers of an annotated signature once.

    A function inside another function is decorated whenever it is defined, and to make its checkers
    takes longer than most such functions run. Private, but without it each decoration changes the
    filters of warnings, so that a warning is shown again at a line that had it.
    """
    make_function = jaxtyping._decorator._make_fn_with_signature
    cached = functools.cache(make_function)

    def make_once(name: str, qualname: str, module: str, signature: Any, output: bool) -> Any:
        try:
            return cached(name, qualname, module, signature, output)
        except TypeError:  # a default value without a hash
            return make_function(name, qualname, module, signature, output)

    jaxtyping._decorator._make_fn_with_signature = make_once
    jaxtyping._decorator._apply_typechecker = functools.cache(
        jaxtyping._decorator._apply_typechecker
    )


share_checkers()

# `make mutation` starts pytest hundreds of times, and these checks take most of a start.
if not os.environ.get("JNO_LORA_TEST_UNCHECKED"):
    # The numeric tower of PEP 484: an `int` may stand where a `float` is annotated.
    packages = pathlib.Path(__file__).parent.glob("plugins/*/*/jno_lora_*")
    jaxtyping.install_import_hook(
        ["jno.lora", *sorted(package.name for package in packages)],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )

import jax
import pytest
from jax._src.interpreters import mlir
from jax._src.lru_cache import LRUCache
from tests.costs import Compilations, Costs
from tests.parts import Parts

pytest.register_assert_rewrite(
    "zoo_cases", "kit_cases", "attention_cases", "foundax_cases", "peft_cases"
)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def share_programs() -> None:
    """Reads programs that another test, process or run compiled from the disk.

    `make clean` removes them. Private, but JAX writes their files in place, so that another process
    could read half of one.
    """

    def put(self: LRUCache, key: str, value: bytes) -> None:
        temporary = pathlib.Path(self.path, f"{key}-{os.getpid()}")
        temporary.write_bytes(value)
        temporary.replace(temporary.with_name(f"{key}-cache"))

    LRUCache.put = put
    folder = os.environ.get("JNO_LORA_TEST_PROGRAMS", os.path.join(sys.prefix, "jax-programs"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


share_programs()


def share_contexts(made_for: int = 100):
    """Lets that many programs share an MLIR context.

    JAX makes one for each, which takes longer than to lower a small program into it. Private, but
    without it a sample of 445 tests took about 1.4 times the processor time.
    """
    make, numbers, shared = mlir.make_ir_context, itertools.count(), [None]

    def context():
        if mlir.ir.Context.current is not None:  # compiled while another program is lowered
            return make()
        if next(numbers) % made_for == 0:
            shared[0] = make()
        return shared[0]

    mlir.make_ir_context = context


share_contexts()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config):
    """Prints how long the parts of the suite took, where the results are printed."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Parts(config.pluginmanager.get_plugin("terminalreporter")))
    if os.environ.get("JNO_LORA_TEST_COSTS"):
        config.pluginmanager.register(Compilations())
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(Costs())


def pytest_collection_finish():
    """Collects garbage less often: a program is many objects, and those of the imports stay."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# The kernel's list of a process's memory maps, where it has one.
_MAPS = pathlib.Path("/proc/self/maps")
_tests_run = itertools.count(1)


def pytest_runtest_teardown():
    """Drops the compiled programs before they need more memory maps than a process may have.

    Each needs a few, and stays until it is dropped. Linux allows 65,530 maps by default, and
    a hundred tests of the kit take up to 4,600.
    """
    if next(_tests_run) % 50 or not _MAPS.exists():
        return
    with _MAPS.open() as maps:
        many = sum(1 for _ in maps) > 30_000
    if many:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def getkey():
    """A function that returns another key at each call, the same ones in every run."""
    state = jax.random.key(5678)

    def get():
        nonlocal state
        state, key = jax.random.split(state)
        return key

    return get


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Runs the rest of a test without the type checks of the suite, as a user runs it."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
