"""Thousands of damaged files: each is refused in one short printable line, or read as the safetensors library reads it.

The library is the oracle wherever we accept; where it accepts and we refuse, the reason must be one of ``STRICTER``.
"""

import json
import os
import re
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inheritune.errors import SurgeryError
from inheritune.surgery.cut import plan_cut
from inheritune.surgery.folder import check_files
from inheritune.surgery.tensor_file import BITS, chunks, read_header

MAX_MESSAGE = 1000
"""Characters of an error beside the path."""

LONGEST_S = 5.0
"""After which an example is a hang."""

STRICTER = {
    "a name that a terminal would act on, or of more than 1000 letters": r"no name of a tensor",
    "a name twice in one object": r"a name occurs twice",
    "metadata null": r"__metadata__ is no mapping of text to text",
    "further fields of a tensor": r"a tensor has the fields",
    "a tensor as a list": r"a tensor is described by",
    "more dimensions than torch has": r"dimensions, at most 64",
    "a size of more than 63 bits": r"are not sizes",
    "a number of more digits than Python reads": r"Exceeds the limit",
    "white space before the header, which has to begin with a brace by the format": r"it begins with b'( |\\[tnr])'",
}
"""What the library lets pass and we do not, and how we say it."""


@contextmanager
def no_hang() -> Iterator[None]:
    """Interrupts what takes longer than ``LONGEST_S``."""

    def interrupt(*_: Any) -> None:
        raise TimeoutError(f"still at work after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


opened: list[str] | None = None
"""Paths that were opened since it was set to a list."""


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and opened is not None and isinstance(arguments[0], str | bytes | Path):
        opened.append(str(arguments[0]))


sys.addaudithook(listen)  # for the rest of the process; it does nothing while nobody listens

CODE = tuple(str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix, Path(__file__).parents[2] / "src"))
"""Where modules are imported from."""


@contextmanager
def only_in(folder: Path) -> Iterator[None]:
    """No file outside of the folder is opened, but those that Python imports."""
    global opened
    opened = []
    try:
        yield
    finally:
        found, opened = opened, None
    outside = [path for path in map(Path, found) if not path.resolve().is_relative_to(folder.resolve())]
    assert not [path for path in outside if not str(path.resolve()).startswith((*CODE, "/proc/", "/sys/"))], outside


def refusal(error: SurgeryError, path: Path) -> str:
    """The message, which must be short and fit for a terminal."""
    said = str(error).replace(str(path), "PATH")
    assert len(said) < MAX_MESSAGE and said.isprintable(), said
    return said


def judge(path: Path, content: bytes) -> str:
    """Read a file and compare with the library; gives what happened, in a word or by the reason why we are stricter."""
    path.write_bytes(content)
    try:
        expected: dict[str, Any] | None = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        expected = None
    with no_hang(), only_in(path):
        try:
            entries = read_header(path)
        except SurgeryError as error:
            said = refusal(error, path)
            if expected is None:
                return "refused"
            reasons = [why for why, pattern in STRICTER.items() if re.search(pattern, said)]
            assert reasons, f"the library reads {content!r}, and we say: {said}"
            return f"stricter: {reasons[0]}"
    assert expected is not None, f"the library refuses {content!r}"
    assert {name: (value["dtype"], tuple(value["shape"])) for name, value in expected.items()} == {
        name: (entry.dtype, entry.shape) for name, entry in entries.items()
    }
    place = 8 + struct.unpack("<Q", content[:8])[0]
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        assert entry.begin == place and entry.end <= len(content)
        assert b"".join(chunks(entry)) == bytes(expected[entry.name]["data"])
        place = entry.end
    assert place == len(content)
    return "read"


ODD_NAMES = [
    "",
    "a\x00b",
    "a\nb",
    "\x1b[31m",
    "\x9b2J",
    "\u202e",
    "\ud800",
    "../a",
    "/etc/passwd",
    "x" * 2000,
    "ä",
    "__metadata__",
]
ODD_NUMBERS = [
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**32,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    1.0,
    1e400,
    True,
]
ODD_DTYPES = [*BITS, "f32", "F33", "PICKLE", "", "\x1b[2J", 3, None]
ODD_VALUES = [None, True, 0, -1, 1.5, "", "text", [], [0], [0, 0], {}, {"a": 0}, [[]], float("nan"), float("inf")]
TOKENS = [*b'{}[]":,0123456789-+.eE\\ \n\tntf', 0x00, 0x1B, 0x7F, 0x80, 0xEF, 0xFF]


@st.composite
def good_headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header that describes a file, and how many bytes of data it has."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if draw(st.booleans()) else {}
    place = 0
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        if BITS[dtype] < 8:
            shape.append(4)
        num_bytes = BITS[dtype]
        for length in shape:
            num_bytes *= length
        header[f"t.{number}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + num_bytes // 8]}
        place += num_bytes // 8
    return header, place


def change(draw: st.DrawFn, header: dict[str, Any]) -> None:
    """One change of the header's meaning, in place."""
    names = [name for name in header if isinstance(header[name], dict) and "shape" in header[name]]
    kind = draw(
        st.sampled_from(["offset", "shape", "dtype", "rename", "drop", "field", "value", "swap", "twin", "metadata"])
    )
    if kind == "metadata":
        header["__metadata__"] = draw(st.sampled_from([*ODD_VALUES, {"a": "b"}, {"a": 3}, {"\x1b": "\x00"}]))
    if not names:
        return
    name = draw(st.sampled_from(names))
    tensor = header[name]
    number = st.one_of(st.sampled_from(ODD_NUMBERS), st.integers(-3, 70))
    if kind == "offset" and isinstance(tensor.get("data_offsets"), list) and len(tensor["data_offsets"]) == 2:
        tensor["data_offsets"][draw(st.integers(0, 1))] = draw(number)
    elif kind == "shape":
        tensor["shape"] = draw(st.one_of(st.lists(number, max_size=4), st.just([1] * 65), st.just([2**32, 2**32])))
    elif kind == "dtype":
        tensor["dtype"] = draw(st.sampled_from(ODD_DTYPES))
    elif kind == "rename":
        header[draw(st.one_of(st.sampled_from(ODD_NAMES), st.text(max_size=5)))] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "field":
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        if draw(st.booleans()):
            tensor.pop(field, None)
        else:
            tensor[field] = draw(st.sampled_from(ODD_VALUES))
    elif kind == "value":
        header[name] = draw(st.sampled_from([*ODD_VALUES, list(tensor.values())]))
    elif kind == "swap":
        other = header[draw(st.sampled_from(names))]
        tensor["data_offsets"], other["data_offsets"] = other.get("data_offsets"), tensor.get("data_offsets")
    else:
        header[f"{name}.twin"] = json.loads(json.dumps(tensor))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A file whose header was changed in its meaning, in its text, in its bytes, or in all of these."""
    header, num_bytes = draw(good_headers())
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        change(draw, header)
    encoded = json.dumps(header, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:  # a name twice, or an object in an object in an object
        encoded = draw(
            st.sampled_from([encoded[:-1] + b"," + encoded[1:], b'{"a":' * 500 + b"0" + b"}" * 500, b"[" * 5000])
        )
    text = bytearray(encoded + b" " * draw(st.integers(0, 8)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5]))):
        place = draw(st.integers(0, len(text)))
        token = draw(st.one_of(st.sampled_from(TOKENS), st.integers(0, 255)))
        text[place : place + draw(st.integers(0, 2))] = bytes([token] * draw(st.integers(0, 2)))
    length = draw(
        st.one_of(*[st.just(len(text))] * 7, st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]), st.integers(0, 300))
    )
    content = struct.pack("<Q", length) + bytes(text) + bytes(index % 251 for index in range(num_bytes))
    end = draw(st.one_of(*[st.just("whole")] * 7, st.sampled_from(["cut", "more"])))
    if end == "cut":
        return content[: draw(st.integers(0, len(content)))]
    return content + b"more" if end == "more" else content


LONG = 500
"""Examples of a long form."""


def fuzz(strategy: st.SearchStrategy[Any], examples: int, check: Callable[[Any], str]) -> Counter[str]:
    """Try so many different examples; gives how often each thing happened."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < LONG,  # the short form tries the same every time, the long one others
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(example: Any) -> None:
        seen[check(example)] += 1

    begin = time.monotonic()
    run()
    print(f"{sum(seen.values())} examples in {time.monotonic() - begin:.0f} s: {dict(seen)}")
    return seen


@pytest.mark.reliability("R16")
def test_header_that_is_damaged_in_its_meaning_is_refused_or_read_as_the_library_does(tmp_path, full):
    examples = 12_000 if full else 200
    path = tmp_path / "a.safetensors"
    seen = fuzz(damaged_files(), examples, lambda content: judge(path, content))
    assert sum(seen.values()) >= examples
    assert min(seen["read"], seen["refused"]) > examples // 100  # neither everything nor nothing


@pytest.mark.parametrize("space", [b" ", b"\t", b"\n", b"\r"])
def test_white_space_before_the_header_is_refused_though_the_library_reads_it(tmp_path, space):
    """The format wants the header to begin with a brace; white space is for its end."""
    content = struct.pack("<Q", 3) + space + b"{}"
    assert judge(tmp_path / "a.safetensors", content).startswith("stricter: white space before the header")


@pytest.mark.reliability("R16")
def test_bytes_that_are_no_file_are_refused_or_read_as_the_library_does(tmp_path, full):
    examples = 4_000 if full else 60
    path = tmp_path / "a.safetensors"
    raw = st.binary(max_size=200)
    framed = raw.map(lambda content: struct.pack("<Q", len(content)) + content)
    braced = raw.map(lambda content: struct.pack("<Q", len(content) + 2) + b"{" + content + b"}")
    seen = fuzz(st.one_of(raw, framed, braced), examples, lambda content: judge(path, content))
    assert sum(seen.values()) >= examples


ODD_SHARDS = [
    *(
        "../secret.safetensors",
        "./../secret.safetensors",
        "sub/../../secret.safetensors",
        "sub/a.safetensors",
        "..",
        ".",
    ),
    *(
        "",
        "link.safetensors",
        "loop.safetensors",
        "pipe.safetensors",
        "folder.safetensors",
        "a.safetensors\x00",
        "a.bin",
    ),
    *(
        "\x1b[2J.safetensors",
        "a\n.safetensors",
        "\u2025/secret.safetensors",
        "..\\secret.safetensors",
        "absent.safetensors",
    ),
    *("\ud800.safetensors", "x" * 300 + ".safetensors", "~/.safetensors", "file:///etc/a.safetensors", "config.json"),
]


def plant(folder: Path) -> None:
    """Beside the weights: a link out of the folder, a loop, a pipe and a folder, all named like weights."""
    secret = folder.parent / "secret.safetensors"
    secret.write_bytes(sorted(folder.glob("model-*.safetensors"))[0].read_bytes())
    ODD_SHARDS.append(str(secret))
    (folder / "link.safetensors").symlink_to(secret)
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()


def mutated(draw: st.DrawFn, value: Any, odd: st.SearchStrategy[Any]) -> Any:
    """A JSON value with one part at any depth replaced, dropped or named otherwise."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        changed = dict(value)
        kind = draw(st.sampled_from(["inner", "inner", "inner", "drop", "rename"]))
        if kind == "inner":
            changed[key] = mutated(draw, value[key], odd)
        elif kind == "drop":
            del changed[key]
        else:
            changed[str(draw(st.sampled_from(ODD_NAMES)))] = changed.pop(key)
        return changed
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutated(draw, value[place], odd), *value[place + 1 :]]
    return draw(odd)


def altered(value: Any, odd: st.SearchStrategy[Any], times: int) -> st.SearchStrategy[bytes]:
    """JSON text of the value after one change or several, sometimes with a byte of it changed too."""

    @st.composite
    def texts(draw: st.DrawFn) -> bytes:
        changed = value
        for _ in range(draw(st.integers(1, times))):
            changed = mutated(draw, changed, odd)
        text = bytearray(json.dumps(changed).encode())
        if draw(st.integers(0, 5)) == 0:
            text[draw(st.integers(0, len(text) - 1))] = draw(st.sampled_from(TOKENS))
        return bytes(text)

    return texts()


@pytest.mark.reliability("R16")
def test_index_that_is_altered_never_opens_a_file_outside_of_its_folder(save_reference, tmp_path, full):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    check_files(folder)  # transformers reads its own list of models once
    plant(folder)
    path = folder / "model.safetensors.index.json"
    honest = json.loads(path.read_text())

    def check(content: bytes) -> str:
        path.write_bytes(content)
        with no_hang(), only_in(folder):
            try:
                weights = check_files(folder)
            except SurgeryError as error:
                refusal(error, folder)
                return "refused"
        assert weights.files and all((folder / name).parent == folder for name in weights.files)
        assert all(entry.end <= entry.file.stat().st_size for entry in weights.tensors.values())
        return "read"

    examples = 3_000 if full else 50
    odd = st.one_of(
        st.sampled_from(ODD_SHARDS),
        st.sampled_from(ODD_VALUES),
        st.sampled_from(sorted(set(honest["weight_map"].values()))),
    )
    seen = fuzz(altered(honest, odd, 2), examples, check)
    assert sum(seen.values()) >= examples and seen["refused"]


@pytest.mark.reliability("R16")
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_config_that_is_altered_is_cut_or_refused_in_one_line(family, save_reference, tmp_path, full):
    folder = save_reference(family, tmp_path / "reference")
    plan_cut(check_files(folder), 2)  # what is imported once
    path = folder / "config.json"
    honest = json.loads(path.read_text())

    def check(content: bytes) -> str:
        path.write_bytes(content)
        with no_hang(), only_in(folder):
            try:
                plan_cut(check_files(folder), 2)
            except SurgeryError as error:
                refusal(error, folder)
                return "refused"
        return "planned"

    examples = 700 if full else 25
    odd = st.one_of(
        st.sampled_from(ODD_VALUES),
        st.sampled_from(ODD_NUMBERS),
        st.sampled_from(ODD_NAMES),
        st.sampled_from(["llama", "gpt2", "bert"]),
    )
    seen = fuzz(altered(honest, odd, 2), examples, check)
    assert sum(seen.values()) >= examples and seen["refused"]
