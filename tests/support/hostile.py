"""Malicious and damaged files for `POST /classify` and `PUT /v1/tasks/{name}`."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.record import RECORD, TENSORS
from mosa_deploy.errors import BundleError

Named = tuple[str, bytes]


def encoded(kind: str, size: tuple[int, int] = (48, 40), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, extra: bytes = b"") -> bytes:
    """A grey PNG whose header states `width` x `height`, whatever the pixel data hold."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")


def images() -> Iterator[Named]:
    """(description, bytes) of files that are not usable images."""
    kinds = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm")
    for kind in kinds:
        whole = encoded(kind)
        for cut in (1, 4, 10, len(whole) // 4, len(whole) // 2):
            yield f"{kind} cut at {cut}", whole[:cut]
        if kind != "ppm":  # Its pixels may be zeros.
            yield f"{kind} of zeros", whole[:16] + bytes(len(whole) - 16)
        yield f"{kind} in noise", np.random.default_rng(1).bytes(100) + whole
    for seed in range(40):
        yield f"noise {seed}", np.random.default_rng(seed).bytes(1 << (seed % 14))
    yield "empty", b""
    yield "text", b"hello"
    yield "html", b"<html><img src=x></html>"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n"
    yield "pdf", b"%PDF-1.7\n1 0 obj\n"
    yield "url", b"http://127.0.0.1/cat.png"
    yield "pickle", b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    yield "zip", zipped([("a.png", encoded("png"))])
    yield "gzip", b"\x1f\x8b\x08\x00" + bytes(100)
    yield "elf", b"\x7fELF" + bytes(200)
    yield "png bomb, 60000 x 60000", png(60_000, 60_000, bytes(1000))
    yield "png bomb, 30000 x 30000, full", png(30_000, 30_000, bytes(30_000_000))
    yield "png of 2 G x 2 G", png(2**31 - 1, 2**31 - 1, b"\0")
    yield "png of nothing", png(0, 0, b"")
    yield "png, 1 x 100000", png(1, 100_000, bytes(200_000))
    yield "png, 100000 x 1", png(100_000, 1, bytes(100_001))
    yield "png, text bomb", png(8, 8, bytes(72), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000))))
    yield "tiff bomb", tiff(70_000, 70_000)
    yield "tiff of 4 G", tiff(2**32 - 1, 2**32 - 1)
    yield "tiff that loops", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    yield "float tiff", encoded_float()
    yield "gif, 65535 x 65535", b"GIF89a\xff\xff\xff\xff\0\0\0" + bytes(50)
    yield "bmp, negative", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "ppm, huge", b"P6 99999 99999 255\n" + bytes(10)
    yield "ppm, no number", b"P6 x y 255\n" + bytes(10)
    yield "jpeg, 65500 x 65500", jpeg_of(65_500, 65_500)
    for seed in range(40):
        kind = kinds[seed % 3]
        broken = bytearray(encoded(kind))
        for place in np.random.default_rng(seed).integers(2, 24, 12):
            broken[place] ^= 0xA5
        yield f"{kind} with a broken head {seed}", bytes(broken)


def tiff(width: int, height: int) -> bytes:
    """A TIFF whose header states `width` x `height`, with one empty strip."""
    tags = ((256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 10))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x12\0\0\0" + bytes(10) + struct.pack("<H", len(tags)) + entries + bytes(4)


def encoded_float() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(buffer, format="tiff")
    return buffer.getvalue()


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header states `width` x `height` instead of its size."""
    whole = encoded("jpeg")
    place = whole.index(b"\xff\xc0") + 5
    return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]


def zipped(members: list[Named], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return buffer.getvalue()


def same_bundle(content: bytes, good: Archive) -> bool:
    """Whether a file still holds the bundle: a zip has bytes that change none of its members, such as their dates."""
    try:
        return Archive.unpack(content, len(content)) == good
    except BundleError:
        return False


def bundles(good: Archive) -> Iterator[Named]:
    """(description, bytes) of files that are not valid bundles of the task, made from a valid one."""
    record, tensors, whole = good.record, good.tensors, good.pack()
    for part in range(0, 20):
        yield f"cut at {part}/20", whole[: len(whole) * part // 20]
    for place in range(0, len(whole), max(1, len(whole) // 30)):
        turned = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        if not same_bundle(turned, good):
            yield f"byte {place} turned", turned
    yield "only a record", zipped([(RECORD, record)])
    yield "one more file", zipped([(RECORD, record), (TENSORS, tensors), ("x.py", b"print()")])
    for name in ("../adapter.json", "/adapter.json", "a/adapter.json", "..\\adapter.json"):
        yield f"named {name!r}", zipped([(name, record), (TENSORS, tensors)])
    yield "zip bomb", zipped([(RECORD, record), (TENSORS, bytes(300_000_000))], zipfile.ZIP_DEFLATED)
    yield "record bomb", zipped([(RECORD, b" " * 100_000_000), (TENSORS, tensors)], zipfile.ZIP_DEFLATED)
    for name, text in {
        "deep": b"[" * 200_000,
        "deep objects": b'{"a":' * 100_000,
        "long number": b'{"format_version": ' + b"9" * 100_000 + b"}",
        "list": b"[]",
        "null": b"null",
        "not utf-8": b"\xff\xfe{}",
        "empty": b"",
        "NaN": b'{"format_version": NaN}',
    }.items():
        yield f"record: {name}", zipped([(RECORD, text), (TENSORS, tensors)])
    fields = json.loads(record)
    for name, change in changes(fields).items():
        yield f"record with {name}", zipped([(RECORD, json.dumps({**fields, **change}).encode()), (TENSORS, tensors)])
    yield from ((f"tensors: {name}", rehashed(fields, content)) for name, content in broken_tensors(tensors))


def changes(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Description -> changed fields, which make a record invalid or that of another task."""
    return {
        "another version": {"format_version": 99},
        "another task": {"task": "cracks"},
        "a path for a task": {"task": "../../birds"},
        "another hash": {"sha256": "0" * 64},
        "another backbone": {"backbone": {**fields["backbone"], "sha256": "1" * 64}},
        "a path for a backbone": {"backbone": {**fields["backbone"], "name": "../../../etc"}},
        "a huge backbone": {"backbone": {**fields["backbone"], "depth": 10**9}},
        "a huge bottleneck": {"adapter": {**fields["adapter"], "bottleneck": 10**9}},
        "no classes": {"classes": []},
        "one class less": {"classes": fields["classes"][1:]},
        "a temperature of 0": {"temperature": 0},
        "an endless temperature": {"temperature": float("inf")},
        "an unknown field": {"evil": 1},
        "huge images": {"preprocess": {**fields["preprocess"], "size": [100_000, 100_000]}},
        "no images": {"preprocess": {**fields["preprocess"], "size": [0, 0]}},
        "a crop of nothing": {"preprocess": {**fields["preprocess"], "crop_pct": 1e-9}},
        "another scale": {"adapter": {**fields["adapter"], "scale": 3.0}},
    }


def broken_tensors(good: bytes) -> Iterator[Named]:
    """(description, bytes) of broken tensor files, for which the record will state the right hash."""
    tensors = load(good)
    head = tensors["head.weight"]
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("huge numbers", 1e38)):
        yield name, save({**tensors, "head.weight": np.full_like(head, value)})
    yield "another shape", save({**tensors, "head.weight": np.ascontiguousarray(head.T)})
    yield "one missing", save({key: value for key, value in tensors.items() if key != "head.bias"})
    yield "one more", save({**tensors, "extra": head})
    yield "no canary", save({key: value for key, value in tensors.items() if not key.startswith("canary.")})
    yield "canary of noise", save({**tensors, "canary.bytes": np.zeros_like(tensors["canary.bytes"])})
    lengths = tensors["canary.lengths"]
    yield "canary of negative lengths", save({**tensors, "canary.lengths": -lengths})
    yield "canary of a bomb", save(with_canary(tensors, png(60_000, 60_000, bytes(1000))))
    yield "canary of 1 x 100000", save(with_canary(tensors, png(1, 100_000, bytes(200_000))))
    yield "pickle", b"\x80\x04\x95"
    yield "empty", b""
    yield "a head of 4 G", struct.pack("<Q", 2**32) + b"{}"
    yield "a deep head", struct.pack("<Q", 100_000) + b"[" * 100_000


def with_canary(tensors: Mapping[str, Any], image: bytes) -> dict[str, Any]:
    """The tensors with a canary of one image."""
    return {
        **tensors,
        "canary.bytes": np.frombuffer(image, dtype=np.uint8),
        "canary.lengths": np.array([len(image)]),
        "canary.probabilities": np.ascontiguousarray(tensors["canary.probabilities"][:1]),
    }


def rehashed(fields: Mapping[str, Any], tensors: bytes) -> bytes:
    """A zip of the tensors and a record with their hash."""
    record = json.dumps({**fields, "sha256": hashlib.sha256(tensors).hexdigest()}).encode()
    return zipped([(RECORD, record), (TENSORS, tensors)])
