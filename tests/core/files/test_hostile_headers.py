"""Files whose header is damaged or lies: a `CheckpointError` each, and no more."""

import json
import os
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jno.lora import (
    CheckpointError,
    read_adapters,
)

from ._tools import assembled, parts, refused


def test_what_is_no_file_is_refused(file, tmp_path):
    assert "No such file" in refused(file)
    assert "is a directory, but adapters are one file" in refused(tmp_path)
    os.mkfifo(file)
    assert "a pipe" in refused(file)
    with pytest.raises(CheckpointError, match="embedded null"):
        read_adapters(f"{tmp_path}/a\0b")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 500, -1])
def test_a_file_that_was_cut_short_is_refused(size, whole, file):
    assert "cut short" in refused(file, whole[:size])


def test_a_longer_file_is_refused(whole, file):
    assert "something was added" in refused(file, whole + b"\0")


def test_files_of_other_kinds_are_refused(file):
    plain = safetensors.numpy.save({"lora_A": np.ones(3)}, metadata={"format": "pt"})
    assert "not from jno-lora" in refused(file, plain)
    assert "not a safetensors file, or was cut short" in refused(file, b"PK\3\4" + bytes(1000))
    assert "not text" in refused(file, struct.pack("<Q", 4) + b"\x80\x04K\x01" + bytes(50))


def test_a_header_of_too_many_bytes_is_not_even_read(file):
    with file.open("wb") as out:  # the file takes no room on the disk
        out.write(struct.pack("<Q", 2**33))
        out.truncate(2**33 + 8)
    assert "8,589,934,592 bytes; at most" in refused(file)


# --- a header that lies


def with_tensor(**changes):
    def change(header, configuration, data):
        name = next(name for name in header if name != "__metadata__")
        header[name] = header[name] | changes
        return assembled(header, configuration, data)

    return change


MISFIT = "its header does not fit its content"
HEADERS = {
    # 256 MiB, which there would be, and sizes that there are not.
    "a large shape": (with_tensor(shape=[2**26]), MISFIT),
    "a huge shape": (with_tensor(shape=[2**40]), MISFIT),
    "a shape beyond counting": (with_tensor(shape=[2**62] * 4), "shape"),
    "nothing, many times over": (
        lambda h, c, d: assembled(
            h
            | {
                "x": {
                    "dtype": "F32",
                    "shape": [0, 2**50, 2**50],
                    "data_offsets": [len(d), len(d)],
                }
            },
            c,
            d,
        ),
        "too large",
    ),
    "too many axes": (with_tensor(shape=[1] * 100 + [3]), "too large"),
    "a negative axis": (with_tensor(shape=[-1]), MISFIT),
    "a bool for an axis": (with_tensor(shape=[True]), MISFIT),
    "a float for an axis": (with_tensor(shape=[1.0]), MISFIT),
    "an unknown dtype": (with_tensor(dtype="OBJECT"), MISFIT),
    "a dtype that NumPy lacks": (with_tensor(dtype="F8_E8M0", shape=[12]), "expected are a dtype"),
    "a dtype that is a list": (with_tensor(dtype=["F32"]), MISFIT),
    "offsets out of range": (with_tensor(data_offsets=[2**40, 2**40 + 12]), MISFIT),
    "offsets backwards": (with_tensor(data_offsets=[12, 0]), MISFIT),
    "offsets below 0": (with_tensor(data_offsets=[-12, 0]), MISFIT),
    "offsets that are one number": (with_tensor(data_offsets=0), MISFIT),
    "more than it should say": (with_tensor(more=1), "expected are a dtype"),
    "a number for a tensor": (lambda h, c, d: assembled(h | {"x": 3}, c, d), MISFIT),
    "metadata of numbers": (
        lambda h, c, d: assembled(json.dumps(h | {"__metadata__": {"jno.lora": 1}}), c, d),
        MISFIT,
    ),
    "metadata that are text": (
        lambda h, c, d: assembled(json.dumps(h | {"__metadata__": "x"}), c, d),
        MISFIT,
    ),
    "a list": (lambda h, c, d: assembled(b"[1]", c, d), "not a JSON object"),
    "not text": (lambda h, c, d: assembled(b'{"\xff": 1}', c, d), "not text"),
    "NaN": (lambda h, c, d: assembled('{"a": NaN}', c, d), "NaN is not JSON"),
    "much nesting": (lambda h, c, d: assembled('{"a":' + "[" * 10**6, c, d), "recursion"),
    "a number of a million digits": (
        lambda h, c, d: assembled(f'{{"a": {"1" * 10**6}}}', c, d),
        "value has 1000000 digits",
    ),
    "many duplicate keys": (
        lambda h, c, d: assembled("{" + '"k": 1,' * 10**5 + '"l": 1}', c, d),
        "'k' is there twice",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name, whole, file):
    make, message = HEADERS[name]
    assert message in refused(file, make(*parts(whole)))


def test_overlapping_arrays_are_refused(whole, file):
    header, configuration, data = parts(whole)
    offsets = {name: info["data_offsets"] for name, info in header.items() if name[0] != "_"}
    same_size = [n for n in offsets if n.endswith(("lora_A", "gain"))]
    assert len(same_size) == 2
    header[same_size[0]]["data_offsets"] = offsets[same_size[1]]
    assert MISFIT in refused(file, assembled(header, configuration, data))


def test_a_tensor_that_is_there_twice_is_refused(whole, file):
    text = whole.decode("latin-1")
    second = text.replace('"b/0:gain"', '"a:lora_A"')  # a name of the same length
    assert len('"b/0:gain"') == len('"a:lora_A"')
    assert "'a:lora_A' is there twice" in refused(file, second.encode("latin-1"))


def test_arrays_that_belong_to_nobody_and_adapters_without_theirs_are_refused(whole, file):
    header, configuration, data = parts(whole)
    header["c:lora_A"] = header.pop("a:lora_A")
    message = refused(file, assembled(header, configuration, data))
    assert "'a:lora_A': in its configuration only" in message
    assert "'c:lora_A': not in its configuration" in message


def test_bools_other_than_0_and_1_are_refused(whole, file):
    header, configuration, data = parts(whole)
    begin, end = header["a:lora_A"]["data_offsets"]
    header["a:lora_A"] |= {"dtype": "BOOL", "shape": [end - begin]}
    data = data[:begin] + b"\2" * (end - begin) + data[end:]
    assert "more than 0 and 1" in refused(file, assembled(header, configuration, data))
