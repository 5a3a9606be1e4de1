"""A plugin that changes settings of the whole program, or prints, while it loads."""

import gc
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import pytest

from jno.lora import JnoLoraWarning, Registry

HOOK = "\n@hookimpl\ndef jno_lora_wrappers():\n    return [adapter('Loud')]\n"
PRINTS = "import sys\nprint('a banner')\nsys.stdout.write('more\\n')\nsys.stdout.flush()\n"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """As in a program of one thread: a worker of pytest-xdist has several threads."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def load(site, code, distribution="loud-lora"):
    site.install(distribution, code + HOOK)
    (record,) = Registry().records()
    return record


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("import jax\njax.config.update('jax_enable_x64', True)", "jax_enable_x64 = True"),
        (
            "import jax\njax.config.update('jax_numpy_rank_promotion', 'allow')",
            "jax_numpy_rank_promotion = 'allow'",
        ),
        (
            "import warnings\nwarnings.simplefilter('ignore')",
            "the warnings filter 'ignore' for Warning in all modules",
        ),
        ("import warnings\nwarnings.resetwarnings()", "the order of the warnings filters"),
    ],
)
def test_a_setting_is_set_back_and_a_warning_names_the_plugin(site, code, change):
    filters, options = list(warnings.filters), dict(jax.config.values)
    with pytest.warns(JnoLoraWarning) as caught:
        record, inside = load(site, code), list(warnings.filters)
    assert inside[1:] == filters and inside[0][:3] == ("always", None, Warning)
    assert warnings.filters == filters and jax.config.values == options
    assert jnp.zeros(1).dtype == jnp.float32
    (message,) = (str(warning.message) for warning in caught)
    assert record.settings_changed == (change,)
    assert "loud-lora 1.0" in message and f"{change}. They were set back" in message
    assert "JNO_LORA_BLOCK=loud-lora" in message
    assert record.status == "loaded" and not record.prints


def test_a_setting_is_set_back_if_the_plugin_fails(site):
    site.install("loud-lora", "import jax\njax.config.update('jax_enable_x64', True)\n1 / 0")
    with pytest.warns(JnoLoraWarning, match="ZeroDivisionError"):
        (record,) = Registry().records()
    assert not jax.config.jax_enable_x64
    assert record.settings_changed == ("jax_enable_x64 = True",)


def test_an_option_that_cannot_be_set_back_is_told(site):
    update, calls = jax.config.update, []

    def refuse_later(name, value):  # as for options that are fixed once JAX has looked for devices
        calls.append(name)
        if len(calls) == 2:
            raise RuntimeError("too late")
        update(name, value)

    site.monkeypatch.setattr(jax.config, "update", refuse_later)
    with pytest.warns(JnoLoraWarning, match=r"True \(which cannot be set back: too late\)"):
        record = load(site, "import jax\njax.config.update('jax_enable_x64', True)")
    update("jax_enable_x64", False)
    assert record.status == "loaded"


def test_filters_for_the_warnings_of_one_library_stay(site):
    code = "import warnings\nwarnings.filterwarnings('ignore', message='of loud-lora')"
    with warnings.catch_warnings():
        record = load(site, code)
        assert record.settings_changed == ()
        warnings.warn("of loud-lora", UserWarning, stacklevel=1)  # would be an error


def test_filters_of_a_thread_that_catches_warnings_meanwhile_are_left_alone(site):
    code = "import warnings\ncaught = warnings.catch_warnings()\ncaught.__enter__()\n"
    with warnings.catch_warnings():
        record = load(site, code + "warnings.simplefilter('ignore')")
        assert warnings.filters[0][:3] == ("ignore", None, Warning)
    assert record.settings_changed == ()


def test_what_a_plugin_prints_goes_to_standard_error(site, capsys):
    before = sys.stdout
    record = load(site, PRINTS)  # a warning would be an error
    assert sys.stdout is before and record.prints
    assert capsys.readouterr() == ("", "a banner\nmore\n")


def test_other_threads_print_as_before_while_plugins_load_side_by_side(site, capsys, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: len(threading.enumerate()))
    before, barrier = sys.stdout, threading.Barrier(3, timeout=30)
    site.monkeypatch.setitem(sys.modules, "jno_lora_test_barrier", barrier)
    code = "import jno_lora_test_barrier as barrier\nbarrier.wait()\nprint('in')\nbarrier.wait()\n"
    for name in ("acme-lora", "bolt-lora"):
        site.install(name, f"{code}print({name!r})\n{HOOK.replace('Loud', name[:4])}")
    registries = [Registry(), Registry()]
    distributions = ("acme-lora", "bolt-lora")

    def ask(registry, name):
        registry.provided(name, name[:4])

    threads = [
        threading.Thread(target=ask, args=pair)
        for pair in zip(registries, distributions, strict=True)
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    print("the program")
    barrier.wait()
    for thread in threads:
        thread.join(timeout=30)
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert out == "the program\n"
    assert sorted(err.split()) == ["acme-lora", "bolt-lora", "in", "in"]


def test_a_stream_that_a_plugin_keeps_writes_to_standard_output_afterwards(site, capsys):
    module = site.install("loud-lora", "import sys\nstdout = sys.stdout\n" + HOOK)
    (record,) = Registry().records()
    print("later", file=sys.modules[module].stdout)
    assert capsys.readouterr() == ("later\n", "") and not record.prints


def test_a_program_without_a_console_loads_plugins_too(site, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    record = load(site, "print('nobody sees it')")
    assert sys.stdout is None and record.status == "loaded" and not record.prints


@pytest.mark.parametrize(
    ("name", "inside"), [("stdout", "buffer"), ("stdout", "detach()"), ("stderr", "buffer")]
)
def test_a_stream_that_a_plugin_replaces_is_set_back(site, capfd, name, inside):
    before, stream = getattr(sys, name), f"sys.{name}"
    code = f"import io, sys\n{stream} = io.TextIOWrapper({stream}.{inside}, encoding='utf-8')\n"
    with pytest.warns(JnoLoraWarning, match=rf"loaded: {stream}\. They were set back"):
        record = load(site, code + "print('a banner', flush=True)")
    assert getattr(sys, name) is before and record.settings_changed == (stream,)
    gc.collect()  # a stream that is collected closes the buffer inside
    print("the program", file=before, flush=True)
    out, err = capfd.readouterr()
    assert "the program\n" in (out if name == "stdout" else err)
    assert record.prints and "a banner\n" in err and "a banner" not in out


def test_a_program_with_threads_keeps_its_settings_and_its_output(site, capsys, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: len(threading.enumerate()))
    before, barrier = sys.stdout, threading.Barrier(2, timeout=30)
    site.monkeypatch.setitem(sys.modules, "jno_lora_test_barrier", barrier)
    waits = "import jno_lora_test_barrier as barrier\nbarrier.wait()\nbarrier.wait()\n"
    wraps = "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\n"
    site.install("loud-lora", waits + wraps + "print('a banner', flush=True)" + HOOK)
    registry = Registry()
    thread = threading.Thread(target=registry.records)
    with warnings.catch_warnings():
        thread.start()
        barrier.wait()
        jax.config.update("jax_numpy_rank_promotion", "allow")
        warnings.simplefilter("always")
        barrier.wait()
        thread.join(timeout=30)
        now, first = jax.config.jax_numpy_rank_promotion, warnings.filters[0][0]
        print("the program", flush=True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    sys.stdout = before
    (record,) = registry.records()
    assert (now, first) == ("allow", "always") and record.settings_changed == ()
    assert capsys.readouterr() == ("the program\n", "a banner\n") and record.prints


def test_a_stream_that_is_only_looked_at_is_no_print(site):
    code = "import sys\nwrite, buffer = sys.stdout.write, sys.stdout.buffer\nwrite('')\n"
    assert not load(site, code).prints
