# SPDX-License-Identifier: Apache-2.0
"""
What the fuzz tests share: how a case runs and what it may end in, and odd images with what must become of them.

`ASCENT_VIT_FUZZ=20 pytest -m "slow or not slow" -k fuzz` draws 20 times as many cases, others each time.
"""

import base64
import io
import os
import random
import resource
import signal
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image


TIMES = int(os.environ.get("ASCENT_VIT_FUZZ", "1"))

# CPU time of one case, in seconds: time that the machine gives to others does not count.
TIME_LIMIT = 30

CASES: Counter = Counter()

NAN, INF = float("nan"), float("inf")


class Hangs(BaseException):
    """Not an Exception, so that nothing takes it for a damaged file."""


class Refused(str):
    """The sentence with which an input was refused."""


REFUSED = Refused()


def _stop(*_):
    raise Hangs(f"a case took more than {TIME_LIMIT} s of CPU time")


@contextmanager
def one_case(name: str):
    CASES[name] += 1
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, TIME_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run(name: str, examples: int, strategy: st.SearchStrategy, check: Callable[[Any], None]) -> None:
    """Runs a check on drawn values, the same each time unless there are more of them than usual."""

    def counted(value):
        with one_case(name):
            check(value)

    settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(counted))()


def each(name: str, cases: Iterable[Any], check: Callable[[Any], None]) -> None:
    """Runs a check on every case there is."""
    for case in cases:
        with one_case(name):
            try:
                check(case)
            except Exception as error:
                error.add_note(f"case: {case!r}")
                raise


def outcome(call: Callable[[], Any], *also: type[Exception]) -> Any:
    """
    What a call gives, or `Refused`. Other errors than ValueError, FileNotFoundError, a field's of another type, and
    `also` are faults, and so are errors that are more or less than one sentence.
    """
    try:
        return call()
    except StrictDataclassFieldValidationError as error:
        return Refused(error)
    except also as error:
        return Refused(error)
    except (ValueError, FileNotFoundError) as error:
        assert not isinstance(error, UnicodeError), f"{error} says not what to do"
        sentence = str(error)
        assert len(sentence) < 1000 and "\n" not in sentence and sentence.endswith((".", "?", ")")), repr(sentence)
        assert sentence.count(" ") >= 3, repr(sentence)
        return Refused(sentence)


def peak_mebibytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Odd:
    """
    An odd input.

    Args:
        kind: what it is, for reports.
        value: what is passed.
        pixels: the RGB pixels that it holds, (height, width, 3) uint8; `REFUSED` where it must be refused; None where
            either may be, but nothing else.
        upright: pixels for those who turn images by their EXIF orientation, where they differ.
    """

    kind: str
    value: Any
    pixels: np.ndarray | Refused | None = None
    upright: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Odd({self.kind}, {str(self.value)[:80]!r})"


SIZES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([(1, 1), (1, 3), (3, 1), (1, 500), (500, 1), (8000, 50), (50, 8000), (257, 255)]),
)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I;16B", "I", "F"]


def noise(seed: int, *shape: int) -> np.ndarray:
    """Random pixels, in large blocks where there are many."""
    rng = np.random.default_rng(seed)
    small = tuple(min(side, 64) for side in shape[:2])
    pixels = rng.integers(0, 256, (*small, *shape[2:]), dtype=np.uint8)
    for axis in (0, 1):
        pixels = np.repeat(pixels, -(-shape[axis] // small[axis]), axis)
    return np.ascontiguousarray(pixels[: shape[0], : shape[1]])


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Pixels with transparency over white, computed here."""
    rgb, alpha = rgba[..., :3].astype(np.float64), rgba[..., 3:].astype(np.float64) / 255
    return np.round(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def in_mode(mode: str, size: tuple[int, int], seed: int, transparent: bool = False) -> tuple[Image.Image, np.ndarray]:
    """An image of a mode, and the RGB pixels that it shows, by Pillow's own conversion or computed here."""
    rgba = Image.fromarray(noise(seed, *size, 4))
    rgb = rgba.convert("RGB")
    grey = noise(seed, *size)
    if mode in ("I;16", "I;16B"):
        deep = (grey.astype(np.uint16) << 8) + grey
        image = Image.frombytes(mode, (size[1], size[0]), deep.astype("<u2" if mode == "I;16" else ">u2").tobytes())
        return image, np.repeat(grey[..., None], 3, -1)
    if mode in ("I", "F"):
        kind = np.int32 if mode == "I" else np.float32
        return Image.fromarray(grey.astype(kind)), np.repeat(grey[..., None], 3, -1)
    if mode in ("RGBA", "LA", "PA"):
        image = rgba.convert("LA") if mode == "LA" else rgba
        image = rgba.convert("P").convert("PA") if mode == "PA" else image
        return image, over_white(np.asarray(image.convert("RGBA")))
    image = rgb.convert("L").convert("1") if mode == "1" else rgb.convert(mode)
    if mode == "P" and transparent:
        image.info["transparency"] = seed % 256
        return image, over_white(np.asarray(image.convert("RGBA")))
    return image, np.asarray(image.convert("RGB"))


@st.composite
def pil_images(draw) -> Odd:
    mode, size = draw(st.sampled_from(MODES)), draw(SIZES)
    image, pixels = in_mode(mode, size, draw(st.integers(0, 99)), draw(st.booleans()))
    return Odd(f"PIL {mode} {size}", image, pixels)


FORMATS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "GIF": ["L", "P", "RGB"],
    "WEBP": ["RGB", "RGBA"],
    "TIFF": ["1", "L", "RGB", "RGBA", "CMYK", "I;16", "F"],
    "BMP": ["1", "L", "P", "RGB"],
    "JPEG": ["L", "RGB", "CMYK"],
    "PPM": ["L", "RGB"],
    "ICO": ["RGBA"],
}


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@st.composite
def encoded_images(draw) -> tuple[str, bytes]:
    """Bytes of an image file, perhaps animated, turned by its EXIF data or compressed with loss."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    size = (16, 16) if kind == "ICO" else draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    image = in_mode(mode, size, draw(st.integers(0, 99)))[0]
    options: dict[str, Any] = {"sizes": [(16, 16)]} if kind == "ICO" else {}
    if kind in ("GIF", "WEBP", "PNG", "TIFF") and draw(st.booleans()):
        others = [in_mode(mode, size, seed)[0] for seed in (100, 101)]
        options |= {"save_all": True, "append_images": others}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    return f"{kind} {mode} {size} {sorted(options)}", encode(image, kind, **options)


# As the EXIF standard defines them, without Pillow's own code for it.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def decoded(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Stored and upright RGB pixels of a good file's first frame."""
    image = Image.open(io.BytesIO(content))
    # Pillow turns TIFF files itself when it loads them.
    image.load()
    orientation = image.getexif().get(0x0112, 1)
    if image.mode.startswith("I;16"):
        stored = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
    elif "A" in image.getbands() or image.info.get("transparency") is not None:
        stored = over_white(np.asarray(image.convert("RGBA")))
    else:
        stored = np.asarray(image.convert("RGB"))
    return stored, TURNS.get(orientation, np.asarray)(stored)


FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-")


def in_file(content: bytes, suffix: str = ".png") -> str:
    path = Path(FOLDER.name) / f"{zlib.crc32(content):08x}-{len(content)}{suffix}"
    path.write_bytes(content)
    return str(path)


@st.composite
def image_files(draw) -> Odd:
    kind, content = draw(encoded_images())
    stored, upright = decoded(content)
    given_as = draw(st.sampled_from(["str", "Path", "file that is closed later"]))
    path = in_file(content)
    if given_as == "file that is closed later":
        return Odd(f"opened {kind}", Image.open(open(path, "rb")), stored, upright)  # noqa: SIM115
    return Odd(f"{given_as} {kind}", Path(path) if given_as == "Path" else path, stored, upright)


@st.composite
def base64_images(draw) -> Odd:
    kind, content = draw(encoded_images())
    text = base64.b64encode(content).decode()
    if draw(st.booleans()):
        text = f"data:image/{kind.split()[0].lower()};base64,{text}"
    return Odd(f"base64 {kind}", text, decoded(content)[1])


@st.composite
def damaged_images(draw) -> Odd:
    """Cut off, overwritten, with bytes put in or left out, or no image at all; sometimes still readable."""
    kind, content = draw(encoded_images())
    data = bytearray(content)
    rng = random.Random(draw(st.integers(0, 10**6)))
    how = draw(st.sampled_from(["cut", "overwritten", "inserted", "removed", "noise", "empty", "text"]))
    at = rng.randrange(len(data))
    if how == "cut":
        del data[at:]
    elif how == "overwritten":
        for _ in range(draw(st.integers(1, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif how == "inserted":
        data[at:at] = rng.randbytes(draw(st.integers(1, 50)))
    elif how == "removed":
        del data[at : at + draw(st.integers(1, 50))]
    elif how == "noise":
        data = bytearray(rng.randbytes(200))
    else:
        data = bytearray(b"" if how == "empty" else b"<html>404</html>")
    content = bytes(data)
    pixels = REFUSED if how in ("noise", "empty", "text") else None
    if draw(st.booleans()):
        return Odd(f"base64 of {how} {kind}", "data:image/png;base64," + base64.b64encode(content).decode(), pixels)
    return Odd(f"file of {how} {kind}", in_file(content), pixels)


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG file that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bmp_that_claims(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + header + b"\0" * 100


def gif_that_claims(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x02\x02\x4c\x01\x00;"
    )


def bombs() -> list[Odd]:
    """Small files that claim more pixels than Pillow's limit, also those of which Pillow by itself would only warn."""
    files = {
        "PNG warned of": png_that_claims(12_000, 10_000),
        "PNG": png_that_claims(60_000, 60_000),
        "PNG line": png_that_claims(2**31 - 1, 1),
        "BMP": bmp_that_claims(50_000, 50_000),
        "GIF": gif_that_claims(65_535, 65_535),
        "GIF warned of": gif_that_claims(10_000, 10_000),
    }
    odd = [Odd(f"bomb {name}", in_file(content), REFUSED) for name, content in files.items()]
    text = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return odd + [Odd(f"base64 bomb {name}", f"data:image/png;base64,{text[name]}", REFUSED) for name in text]


DTYPES = ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


def shown_twelve_bits(array: np.ndarray) -> np.ndarray:
    """Colours 0 to 255 of numbers 0 to 4095, `(height, width)` or `(height, width, 1 or 3)`."""
    shown = np.round(array.astype(np.float64) / 4095 * 255).astype(np.uint8)
    shown = shown[..., None] if shown.ndim == 2 else shown
    return np.repeat(shown, 3, -1) if shown.shape[-1] == 1 else shown


@st.composite
def integer_arrays(draw) -> Odd:
    """Arrays and tensors that hold pixels from 0 to 255, or something else."""
    height, width = draw(st.tuples(st.integers(5, 40), st.integers(5, 40)))
    channels = draw(st.sampled_from([0, 1, 3, 4, 2, 5]))
    dtype = draw(st.sampled_from(DTYPES))
    array = noise(draw(st.integers(0, 99)), height, width, *([channels] if channels else []))
    layout = draw(st.sampled_from(["last", "first", "reversed", "big endian", "fortran", "read-only"]))
    content = draw(st.sampled_from(["pixels", "pixels", "pixels", "negative", "large"]))
    pixels: Any = array[..., None] if not channels else array
    pixels = np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels
    pixels = over_white(pixels) if pixels.shape[-1] == 4 else pixels
    pixels = REFUSED if channels in (2, 5) else pixels
    array = array // 2 if dtype == "int8" else array
    pixels = None if dtype == "int8" or (channels == 4 and dtype.startswith("float")) else pixels
    array = array.astype(dtype)
    if content == "negative" and not dtype.startswith("u"):
        array[0] = -5
        pixels = REFUSED
    if content == "large" and dtype not in ("uint8", "int8"):
        array[0] = 2000
        # Numbers of 16 bits are then of 12, all others none.
        deep = dtype in ("int16", "uint16") and isinstance(pixels, np.ndarray) and channels != 4
        pixels = (
            shown_twelve_bits(array) if deep else None if dtype in ("int16", "uint16") and channels == 4 else REFUSED
        )
    if layout == "first" and channels:
        array = np.moveaxis(array, -1, 0)
    elif layout == "reversed":
        array = array[::-1]
        pixels = pixels[::-1] if isinstance(pixels, np.ndarray) else pixels
    elif layout == "big endian":
        array = array.astype(array.dtype.newbyteorder(">"))
    elif layout == "fortran":
        array = np.asfortranarray(array)
    elif layout == "read-only":
        array.flags.writeable = False
    kind = f"{dtype} {array.shape} {layout} {content}"
    if draw(st.booleans()):
        return Odd(
            f"tensor {kind}", torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("="))), pixels
        )
    return Odd(f"array {kind}", array, pixels)


@st.composite
def float_arrays(draw) -> Odd:
    """Arrays and tensors with a value that is none, or that is no pixel."""
    array = noise(draw(st.integers(0, 99)), 20, 30, draw(st.sampled_from([1, 3, 4]))).astype(np.float32)
    array[draw(st.integers(0, 19)), draw(st.integers(0, 29))] = draw(
        st.sampled_from([NAN, INF, -INF, -1.0, 256.0, 1e30, -1e-3])
    )
    array = array / draw(st.sampled_from([1, 255]))
    name = draw(st.sampled_from(["float32", "float64", "float16", "bfloat16", "PIL"]))
    value: Any = array
    if name == "PIL":
        value = Image.fromarray(array[..., 0])
    elif name == "bfloat16":
        value = torch.from_numpy(array).to(torch.bfloat16)
    else:
        with np.errstate(over="ignore"):
            value = array.astype(name)
    return Odd(f"{name} floats", value, None if array.min() >= 0 and array.max() <= 255 else REFUSED)


def junk() -> list[Odd]:
    """What is no image at all."""
    array = noise(0, 20, 30, 3)
    values = [
        None, 0, 1.5, True, b"", b"\x89PNG", {}, {"image": array}, {1}, [], (), [[]], [None], [array, None], object(),
        "", " ", "nowhere.png", "/", ".", "http://127.0.0.1:9/x.png", "https://", "http://[", "file:///x.png",
        "data:image/png;base64,", "data:image/png;base64,!!!", "data:,", "a" * 5000, "\0", "\n", "é" * 300,
        "x/" * 3000,
        np.array(3), np.zeros(5), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0, 3), np.uint8), np.zeros((5, 5, 0)),
        np.zeros((0, 5, 5, 3)), np.zeros((1, 1, 1, 5, 5)), np.zeros((5, 5, 3), complex), np.zeros((5, 5, 3), bool),
        np.array([["a"]]), np.array([[None]]), np.zeros((5, 5), "datetime64[s]"), np.zeros((5, 5), "V4"),
        torch.tensor(3), torch.zeros(5), torch.zeros(0, 3, 3), torch.zeros(5, 5, dtype=torch.bool),
        torch.zeros(3, 5, 5, device="meta"), torch.zeros(5, 5).to_sparse(),
        torch.zeros(3, 5, 5, dtype=torch.complex64),
        Image.new("RGB", (0, 0)), Image.new("RGB", (0, 5)), Image.new("L", (5, 0)), Image.new("La", (5, 5)), Image,
        array.tolist(), array[0].tolist(), [array, 3], [array, "nowhere.png"], [[array], 3], range(3),
        Image.open(io.BytesIO(encode(Image.fromarray(array), "PNG")[:300])),
        Image.fromarray(np.full((5, 5), 70_000, np.int32)), Image.fromarray(np.full((5, 5), NAN, np.float32)),
    ]  # fmt: skip
    return [Odd(f"junk {i} {type(value).__name__}", value, REFUSED) for i, value in enumerate(values)]


def odd_images() -> st.SearchStrategy[Odd]:
    return st.one_of(
        pil_images(), image_files(), base64_images(), damaged_images(), integer_arrays(), float_arrays(),
        st.sampled_from(junk()),
    )  # fmt: skip


def close_to(got: np.ndarray, expected: np.ndarray, levels: float) -> None:
    """Asserts that pixels (3, h, w) in [-1, 1] are an image's, resized by Pillow, up to some of 255 levels."""
    height, width = got.shape[1:]
    resized = Image.fromarray(np.ascontiguousarray(expected)).resize((width, height), Image.Resampling.BILINEAR)
    difference = np.abs(got - (np.asarray(resized).transpose(2, 0, 1) / 127.5 - 1)).max() * 127.5
    assert difference <= levels, f"{difference:.2f} levels off"
