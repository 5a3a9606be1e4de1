"""Saving that is killed, starved or shared: whoever reads finds the old file or the new one, whole.

`test_writing` has failures of single calls of the operating system. Here processes are killed at
every step and at any time, and several of them write and read one file at once.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import CheckpointError, LoRAWrapper, extract_adapters, read_adapters, save_adapters

from .toys import ToyLinear

# The adapters here come from no plugin, and none is looked for.
pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adapters.safetensors"


# A process that has imported everything, and forks one that is killed at each line in turn of the
# code that writes. The first line that is not reached any more is beyond the last.
EVERY_LINE = """
    import os, signal, sys
    from pathlib import Path
    import jno.lora._checkpoint._file as writing

    file, old, new = Path(sys.argv[1]), b"old" * 100_000, b"new" * 200_000

    def killed_at(line):
        seen = 0
        def trace(frame, event, arg):
            nonlocal seen
            if frame.f_code.co_filename != writing.__file__:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)

    contents = []
    for line in range(1, 1000):
        file.write_bytes(old)
        child = os.fork()
        if child == 0:
            killed_at(line)
            writing.write_together({file: new})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        content = file.read_bytes()
        assert content in (old, new), (line, len(content))
        contents.append(content == new)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and content == new
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        for left in file.parent.glob(".*.tmp"):
            left.unlink()
    print(len(contents), contents.index(True))
"""


def run(script, *arguments, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def test_a_process_killed_at_any_line_leaves_the_old_file_or_the_new_one(file):
    done = run(EVERY_LINE, file)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    lines, replaced = map(int, out.split())
    # It was killed at some lines before the new file took the name, and at some after.
    assert lines > 25 and 15 < replaced < lines - 1


# Saves two sets of adapters in turn, as fast as it can. Waits in one process, and saves in others
# that it forks: importing takes longer than all that is done here.
SAVING = """
    import os, sys
    import equinox as eqx, jax, numpy as np
    from jno.lora import LoRAWrapper, Registry, save_adapters, extract_adapters

    class ToyLinear(LoRAWrapper):
        adapter_fields = ("lora_A", "lora_B")
        base: eqx.Module
        lora_A: jax.Array
        lora_B: jax.Array
        rank: int = eqx.field(static=True)
        alpha: float = eqx.field(static=True)
        @classmethod
        def applies_to(cls, leaf): return False
        def __init__(self, base, value):
            self.base, self.rank, self.alpha = base, 1, 1.0
            self.lora_A = np.full((1, 20_000), value, np.float32)
            self.lora_B = np.full((3, 1), value, np.float32)
        def __call__(self, x): return x
        def merge(self): return self.base

    class Layer(eqx.Module):
        weight: np.ndarray

    registry = Registry(discover=False)
    layer = Layer(np.zeros((3, 20_000), np.float32))
    print("ready", flush=True)
    for line in sys.stdin:
        path, value = line.split()
        child = os.fork()
        if child == 0:
            adapters = [extract_adapters({"a": ToyLinear(layer, float(value) + n)}) for n in (0, 1)]
            os.write(1, f"{os.getpid()}\\n".encode())
            while True:
                for one in adapters:
                    save_adapters(one, path, registry=registry)
"""


@pytest.fixture
def savers():
    """A function that starts a process which saves adapters filled with one number or the next."""
    # Several processes save at a time, and JAX writes compiled programs in place.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    parent = run(SAVING, stdin=subprocess.PIPE, env=os.environ | settings)
    assert parent.stdout.readline() == "ready\n", parent.stderr.read()
    children = []

    def start(path, value):
        parent.stdin.write(f"{path} {value}\n")
        parent.stdin.flush()
        children.append(int(parent.stdout.readline()))
        return children[-1]

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    parent.kill()
    parent.communicate()


def value_in(file):
    """The number that every array of the file is full of."""
    adapter = read_adapters(file, wrappers=[ToyLinear])["a"]
    arrays = [np.asarray(array).ravel() for array in adapter.state.values()]
    values = np.unique(np.concatenate(arrays))
    assert sum(map(len, arrays)) == 20_003
    assert len(values) == 1, "a mixture of two files"
    return float(values[0])


def wait_for(file):
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.005)


def test_a_process_killed_at_any_time_while_it_saves_leaves_a_whole_file(savers, file):
    rng = np.random.default_rng(0)
    for number in range(10):
        child = savers(file, 10 * number)
        wait_for(file)
        # Until this one has saved at least once: the numbers of no two are the same.
        deadline = time.monotonic() + 60
        while value_in(file) not in (10 * number, 10 * number + 1):
            assert time.monotonic() < deadline
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert value_in(file) in (10 * number, 10 * number + 1)
    left = [path.name for path in file.parent.iterdir() if path != file]
    assert all(name.startswith(f".{file.name[:40]}.") and name.endswith(".tmp") for name in left)


def test_whoever_reads_while_several_processes_save_reads_a_whole_file(savers, file):
    for value in (10, 20, 30):
        savers(file, value)
    wait_for(file)
    seen = set()
    begin = time.monotonic()
    while time.monotonic() < begin + 1.5 or len(seen) < 3:
        seen.add(value_in(file))
        assert time.monotonic() < begin + 60, "one process keeps the others from saving"
    assert seen <= {10, 11, 20, 21, 30, 31}


class Filled(ToyLinear):
    """An adapter full of one number."""

    def __init__(self, base, value):
        self.base, self.rank, self.alpha = base, 1, 1.0
        self.lora_A = jnp.full((1, 20_000), value, jnp.float32)
        self.lora_B = jnp.full((3, 1), value, jnp.float32)


Filled.__name__ = "ToyLinear"


def sets_of(values) -> list:
    layer = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    adapters: list[LoRAWrapper] = [Filled(layer, float(value)) for value in values]
    return [extract_adapters({"a": adapter}) for adapter in adapters]


def test_whoever_reads_while_several_threads_save_reads_a_whole_file(file):
    sets, errors, seen = sets_of(range(4)), [], set()
    save_adapters(sets[0], file)
    begin = time.monotonic()

    def repeat(action):
        try:
            while time.monotonic() < begin + 1 or len(seen) < 2:
                action()
                assert time.monotonic() < begin + 60, "one thread keeps the others from saving"
        except BaseException as err:
            errors.append(err)

    actions = [lambda one=one: save_adapters(one, file) for one in sets]
    actions += [lambda: seen.add(value_in(file))] * 3
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert seen <= {0, 1, 2, 3}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# --- folders and disks that take nothing; root, which may write anywhere, meets these as well


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EMFILE], ids=os.strerror
)
def test_where_no_file_can_be_made_the_old_one_stays(number, file, monkeypatch):
    (one,) = sets_of([1])
    file.write_bytes(b"old")
    opened = open

    def refuse(path, mode="r", **options):
        if "x" in mode:
            raise OSError(number, os.strerror(number))
        return opened(path, mode, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match=os.strerror(number)):
        save_adapters(one, file)
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [1, 20_000], ids=["when it is flushed", "while it is written"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(numbers, old, file, monkeypatch):
    """The file can be made, but what is written into it finds no room."""
    (one,) = sets_of([1])
    fields = lambda adapters: [adapters["a"].state[name] for name in ("lora_A", "lora_B")]  # noqa: E731
    one = eqx.tree_at(fields, one, [array[:, :numbers] for array in fields(one)])
    if old is not None:
        file.write_bytes(old)
    opened, made = open, []

    def full(path, mode="r", **options):
        file = opened(path, mode, **options)
        if "x" in mode:
            made.append(path)
            device = os.open("/dev/full", os.O_WRONLY)
            os.dup2(device, file.fileno())
            os.close(device)
        return file

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left") as caught:
        save_adapters(one, file)
    monkeypatch.undo()
    assert str(file) in str(caught.value) and caught.value.__cause__.errno == errno.ENOSPC
    assert len(made) == 1 and made[0].parent == file.parent
    assert (file.read_bytes() if file.exists() else None) == old
    assert [path.name for path in file.parent.iterdir()] == [file.name] * (old is not None)


def test_below_a_file_there_is_no_directory_even_for_root(file):
    (one,) = sets_of([1])
    file.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="Not a directory"):
        save_adapters(one, file / "adapters.safetensors")
    assert file.read_bytes() == b"old"


def test_a_directory_that_is_read_only_is_refused_and_nothing_is_left(file):
    (one,) = sets_of([1])
    file.write_bytes(b"old")
    file.parent.chmod(0o555)
    try:
        if os.access(file.parent, os.W_OK):  # root: the write succeeds, as it must
            save_adapters(one, file)
            assert value_in(file) == 1
        else:
            with pytest.raises(CheckpointError, match="Permission denied"):
                save_adapters(one, file)
            assert file.read_bytes() == b"old"
    finally:
        file.parent.chmod(0o755)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
