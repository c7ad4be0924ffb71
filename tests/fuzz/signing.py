"""A packed file's header changed, tensors laid out as it says then, and digests put right."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixtura.packed.header import Entry, placed, read_header

Tree = dict[str, Any]
_PREFIX = struct.Struct("<8sIIQ")


def entry_of(tree: Tree, name: str) -> Tree:
    return next(entry for entry in tree["tensors"] if entry["name"] == name)


def header_of(raw: bytes) -> Tree:
    (*_, length) = _PREFIX.unpack_from(raw)
    return json.loads(raw[_PREFIX.size : _PREFIX.size + length])


def sign_anew(path: Path, change: Callable[[Tree], object]) -> None:
    """`change` the header; a tensor that it makes larger is filled up with zeros."""
    _, begin = read_header(path)
    raw = path.read_bytes()
    tree, data = header_of(raw), raw[begin:]
    for entry in tree["tensors"]:
        entry["was"] = data[entry["offset"] :][: entry["bytes"]]
    change(tree)
    text, contents = laid_out(tree)
    path.write_bytes(signed(text, contents))


def laid_out(tree: Tree) -> tuple[bytes, bytes]:
    """The header's text, and the data; each entry's bytes stand under `was`."""
    contents, last = bytearray(), None
    for entry in tree["tensors"]:
        was = entry.pop("was")
        digests = entry["shape"][0] if entry["format"].startswith("experts") else 1
        last = placed(entry["name"], entry["format"], tuple(entry["shape"]), last, digests)
        contents += bytes(last.offset - len(contents)) + was[: last.bytes].ljust(last.bytes, b"\0")
        entry.update(offset=last.offset, bytes=last.bytes, sha256=_digests(last, contents))
    return json.dumps(tree).encode(), bytes(contents)


def signed(text: bytes, contents: bytes) -> bytes:
    """A whole file of a header's text and its data."""
    head = _PREFIX.pack(b"MIXTURA\0", 1, 0, len(text)) + text + hashlib.sha256(text).digest()
    return head + bytes(-len(head) % 4096) + contents


def _digests(entry: Entry, contents: bytes | bytearray) -> list[str]:
    starts = [entry.offset + number * entry.stride for number in range(len(entry.sha256))]
    return [hashlib.sha256(contents[at : at + entry.stride]).hexdigest() for at in starts]
