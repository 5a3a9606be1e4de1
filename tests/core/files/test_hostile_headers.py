"""Files whose header is damaged or lies: a `CheckpointError` each, and no more."""

import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jno.lora import (
    CheckpointError,
    read_adapters,
    read_metadata,
)

from ._tools import OWN, assembled, parts, refused


def test_what_is_no_file_is_refused(file, tmp_path):
    assert "No such file" in refused(file)
    assert "is a directory, but adapters are one file" in refused(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 500, -1])
def test_a_file_that_was_cut_short_is_refused(size, whole, file):
    assert "cut short" in refused(file, whole[:size])


def test_a_longer_file_is_refused(whole, file):
    assert "something was added" in refused(file, whole + b"\0")


def test_files_of_other_kinds_are_refused(file):
    plain = safetensors.numpy.save({"lora_A": np.ones(3)}, metadata={"format": "pt"})
    assert "not from jno-lora" in refused(file, plain)
    pickled = struct.pack("<Q", 4) + b"\x80\x04K\x01" + bytes(50)
    for content in (b"PK\3\4" + bytes(1000), pickled):
        assert "not a safetensors file" in refused(file, content)


def test_a_header_of_too_many_bytes_is_not_even_read(file):
    with file.open("wb") as out:  # the file takes no room on the disk
        out.write(struct.pack("<Q", 2**33))
        out.truncate(2**33 + 8)
    assert MISFIT in refused(file)


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
    "a list": (lambda h, c, d: assembled(b"[1]", c, d), MISFIT),
    "not text": (lambda h, c, d: assembled(b'{"\xff": 1}', c, d), MISFIT),
    "NaN": (lambda h, c, d: assembled('{"a": NaN}', c, d), MISFIT),
    "much nesting": (lambda h, c, d: assembled('{"a":' + "[" * 10**6, c, d), "recursion"),
    "a number of a million digits": (
        lambda h, c, d: assembled(f'{{"a": {"1" * 10**6}}}', c, d),
        MISFIT,
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


def test_arrays_that_belong_to_nobody_and_adapters_without_theirs_are_refused(whole, file):
    header, configuration, data = parts(whole)
    header["c:lora_A"] = header.pop("a:lora_A")
    message = refused(file, assembled(header, configuration, data))
    assert "'a:lora_A': in its configuration only" in message
    assert "'c:lora_A': not in its configuration" in message


# --- a damaged file; `parts` leaves the checksums out, as files of version 0.3 do


def test_a_flipped_bit_anywhere_behind_the_header_is_refused(whole, file):
    begin = 8 + struct.unpack("<Q", whole[:8])[0]
    header, _, _ = parts(whole)
    for name in ("a:lora_A", "b/0:gain"):
        for offset in range(*header[name]["data_offsets"]):
            damaged = bytearray(whole)
            damaged[begin + offset] ^= 1 << (offset % 8)
            message = refused(file, bytes(damaged))
            assert "damaged" in message and name in message


def test_a_digit_that_changed_in_the_configuration_is_refused(whole, file):
    damaged = whole.replace(b'\\"nu\\": 0.05', b'\\"nu\\": 0.15')
    assert damaged != whole
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        read_metadata(file)


def test_the_order_of_the_arrays_does_not_matter_to_the_checksums(whole, file):
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    metadata, moved, turned = header.pop("__metadata__"), {}, b""
    for name, info in reversed(header.items()):
        begin, end = info["data_offsets"]
        moved[name] = info | {"data_offsets": [len(turned), len(turned) + end - begin]}
        turned += data[begin:end]
    file.write_bytes(assembled(json.dumps({"__metadata__": metadata} | moved), None, turned))
    assert turned != data and list(read_adapters(file, wrappers=OWN)) == ["a", "b/0"]


def test_a_file_without_checksums_loads_as_before(whole, file):
    file.write_bytes(assembled(*parts(whole)))
    assert list(read_adapters(file, wrappers=OWN)) == ["a", "b/0"]
