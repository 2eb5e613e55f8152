"""A compiled model as bytes: its plan, sources, constants and machine code in one piece, for the
cache.

A JSON head tells where each part lies; nothing of it can run code when it is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.plan import Plan, from_json, to_json


@dataclass(frozen=True)
class Compiled:
    """A plan with its machine code.

    Attributes
    ----------
    plan : Plan
    objects : dict of str to bytes
        Relocatable objects by the symbol that they define.
    sources : dict of str to str
        The Python source of each kernel.
    constants : dict of str to array
        The arrays of the plan's constant buffers, by name.
    """

    plan: Plan
    objects: Mapping[str, bytes]
    sources: Mapping[str, str]
    constants: Mapping[str, np.ndarray[Any, Any]]


def pack(compiled: Compiled) -> bytes:
    """A compiled model as bytes."""
    parts = [
        *compiled.objects.values(),
        *(np.ascontiguousarray(a).tobytes() for a in compiled.constants.values()),
    ]
    head = {
        "plan": to_json(compiled.plan),
        "sources": dict(compiled.sources),
        "objects": list(compiled.objects),
        "constants": [
            [name, a.dtype.name, list(a.shape)] for name, a in compiled.constants.items()
        ],
        "sizes": [len(part) for part in parts],
    }
    text = json.dumps(head).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def unpack(data: bytes) -> Compiled:
    """The inverse of `pack`."""
    (length,) = struct.unpack_from("<Q", data)
    head, at = json.loads(data[8 : 8 + length]), 8 + length
    parts = []
    for size in head["sizes"]:
        parts.append(data[at : at + size])
        at += size
    objects = dict(zip(head["objects"], parts, strict=False))
    arrays = zip(head["constants"], parts[len(objects) :], strict=True)
    constants = {
        name: np.frombuffer(part, dtype).reshape(shape) for (name, dtype, shape), part in arrays
    }
    return Compiled(from_json(head["plan"]), objects, head["sources"], constants)
