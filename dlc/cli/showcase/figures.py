"""Digits, filters and confusions as pictures in a page."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"


def png(ink: Array) -> str:
    """An image as the address of a PNG that holds it all.

    Parameters
    ----------
    ink : array
        (H, W), from 0, paper, to 1, ink: black on white.
    """
    grey = np.rint(255 * (1 - np.clip(ink, 0, 1))).astype(np.uint8)
    height, width = grey.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = np.insert(grey, 0, 0, axis=1).tobytes()  # each begins with 0: no filter
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def digit(ink: Array, about: str) -> str:
    """A digit, (28, 28), as an image."""
    return f'<img class="ink" src="{png(ink)}" alt="{about}" title="{about}">'


def weights(values: Array, about: str, scale: float) -> str:
    """A filter's weights, (H, W), as squares: their sign by colour, their size by strength."""
    height, width = values.shape
    squares = "".join(
        f'<rect class="{"plus" if value > 0 else "minus"}" x="{x}" y="{y}" width="1.02" '
        f'height="1.02" fill-opacity="{min(1.0, abs(value) / scale):.2f}"/>'
        for (y, x), value in np.ndenumerate(values)
    )
    return (
        f'<svg class="filter" viewBox="0 0 {width} {height}" role="img" aria-label="{about}">'
        f"<title>{about}</title>{squares}</svg>"
    )


def confusions(counts: Array, names: Sequence[str]) -> str:
    """A matrix of counts: what is (rows) taken for what (columns)."""
    size, most = len(names), max(1, int((counts - np.diag(np.diag(counts))).max()))
    body = []
    for (row, column), count in np.ndenumerate(counts):
        right = row == column
        part = count / max(1, counts[row].sum()) if right else (count / most) ** 0.5
        strength = 0.9 * part if right else 0.15 * bool(count) + 0.75 * part
        what = f"{count} of {counts[row].sum()}: a {names[row]}, read as {names[column]}"
        body.append(
            f'<g><title>{what}</title><rect class="cell {"right" if right else "wrong"}" '
            f'x="{column + 1.06:.2f}" y="{row + 0.06:.2f}" width=".88" height=".88" rx=".1" '
            f'fill-opacity="{strength:.2f}"/>'
        )
        if count:
            on = ' class="on"' if right or strength > 0.5 else ""
            body.append(f'<text{on} x="{column + 1.5}" y="{row + 0.62}">{count}</text>')
        body.append("</g>")
    for place, name in enumerate(names):
        body.append(f'<text class="quiet" x=".6" y="{place + 0.62}">{name}</text>')
        body.append(f'<text class="quiet" x="{place + 1.5}" y="{size + 0.55}">{name}</text>')
    return (
        f'<svg class="matrix" viewBox="0 0 {size + 1} {size + 1}" role="img" '
        f'aria-label="What is read as what">{"".join(body)}</svg>'
    )
