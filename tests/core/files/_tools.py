"""Adapters of many forms, and files in parts, of which others are made."""

import json
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import CheckpointError, LoRAWrapper, apply_lora, load_adapters, read_adapters

from ..toys import ToyLinear, ToyScale, ToyStacked, shaken

OWN = [ToyLinear, ToyScale, ToyStacked]


def adapted(model, getkey, wrapper=ToyLinear, rank=2, **options):
    model = apply_lora(model, rank, 3.0, key=getkey(), wrapper=wrapper, **options)
    return shaken(model)


class Assorted(LoRAWrapper):
    """Arrays of many forms, some of them nested; the constructor makes them all float32."""

    adapter_fields = ("trained",)
    base: eqx.nn.Linear
    trained: jax.Array
    kept: dict
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.trained = jnp.zeros((rank, 3))
        self.kept = {"scalar": jnp.zeros(()), "none": jnp.zeros((0, 2)), "a": [jnp.zeros(5)]}

    def __call__(self, x):
        return self.base(x)

    def merge(self):
        return self.base


def small_model():
    one, two = jax.random.split(jax.random.key(0))
    return {"a": eqx.nn.Linear(3, 2, key=one), "b": [eqx.nn.Linear(2, 3, key=two)]}


def parts(content):
    """Header, configuration and data. Without the checksums, so that changed parts can be read."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]["jno.lora.crc32"]
    (text,) = header["__metadata__"].values()
    return header, json.loads(text), content[8 + length :]


def assembled(header, configuration, data):
    """A file of these parts. Header and configuration may be text, to hold what `dumps` refuses."""
    if isinstance(header, dict):
        text = configuration if isinstance(configuration, str) else json.dumps(configuration)
        header = json.dumps(header | {"__metadata__": {"jno.lora": text}})
    return struct.pack("<Q", len(header)) + header.encode() + data


def refused(file, content=None):
    """The message; reading and loading both refuse the file."""
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_adapters(file, wrappers=OWN)
    with pytest.raises(CheckpointError):
        load_adapters(small_model(), file, wrappers=OWN, strict=False)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 3000
    return str(caught.value)
