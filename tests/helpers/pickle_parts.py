"""Strategies of pickle opcodes: calls of any function, and tensors with sizes and strides out of range."""

import io
import pickle
import pickletools
import zipfile
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from helpers.mutations import HOSTILE, PLACES, SIZES, WORDS


def torch_file(data: bytes, storages: list[bytes]) -> bytes:
    """A file of torch.save's form, with correct checksums, around any pickle."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage)
        archive.writestr("archive/version", "3\n")
    return target.getvalue()


def tokens(data: bytes) -> list[bytes]:
    """The opcodes of a pickle, each with its argument."""
    places = [at for _, _, at in pickletools.genops(data) if at is not None]
    return [data[start:end] for start, end in pairwise([*places, len(data)])]


def name_token(path: str) -> bytes:
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def value_tokens(value: Any) -> bytes:
    """The opcodes that put a plain value on the stack."""
    return pickle.dumps(value, protocol=2)[2:-1]


ALLOWED = (
    *(
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_meta_tensor_no_storage",
    ),
    *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor", "torch._utils._rebuild_nested_tensor"),
    *("torch._utils._rebuild_wrapper_subclass", "torch._utils._rebuild_device_tensor_from_numpy", "torch.Tensor"),
    *("torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout", "collections.OrderedDict"),
    *("collections.Counter", "torch.Size", "torch.device", "_codecs.encode", "builtins.bytearray", "builtins.set"),
    *(
        "torch.FloatStorage",
        "torch.storage.UntypedStorage",
        "torch.nn.parameter.Parameter",
        "torch.float32",
        "torch.int8",
    ),
    "builtins.complex",
)
"""Names that torch.load imports and calls."""

NAMES = st.sampled_from([*ALLOWED, *HOSTILE]).map(name_token)
PLAIN = (SIZES | WORDS.filter(lambda word: word.isprintable()) | st.booleans() | st.none()).map(value_tokens)
SHAPES = st.lists(SIZES, max_size=3).map(tuple).map(value_tokens)
STORAGES = st.builds(
    lambda kind, key, size: (
        b"("
        + value_tokens("storage")
        + kind
        + value_tokens((str(key), "cpu", size))[:0]
        + value_tokens(str(key))
        + value_tokens("cpu")
        + value_tokens(size)
        + b"tQ"
    ),
    st.sampled_from(["torch.FloatStorage", "torch.storage.UntypedStorage", "torch.LongStorage"]).map(name_token),
    st.integers(0, 3),
    SIZES | st.sampled_from([14, 126]),
)
TENSORS = st.builds(
    lambda storage, offset, size, stride: (
        name_token("torch._utils._rebuild_tensor_v2")
        + b"("
        + storage
        + value_tokens(offset)
        + size
        + stride
        + value_tokens(False)
        + name_token("collections.OrderedDict")
        + b")RtR"
    ),
    STORAGES,
    SIZES,
    SHAPES,
    SHAPES,
)
META = st.builds(
    lambda size: (
        name_token("torch._utils._rebuild_meta_tensor_no_storage")
        + b"("
        + name_token("torch.float32")
        + size
        + size
        + value_tokens(False)
        + b"tR"
    ),
    st.sampled_from([(14,), (14, 1, 3, 3), (10**12,)]).map(value_tokens),
)
EXPRESSIONS = st.recursive(
    PLAIN | NAMES | STORAGES | TENSORS | META,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: b"(" + b"".join(parts) + b"t"),
        st.lists(inner, max_size=4).map(lambda parts: b"](" + b"".join(parts) + b"e"),
        st.lists(st.tuples(inner, inner), max_size=3).map(lambda parts: b"}(" + b"".join(map(b"".join, parts)) + b"u"),
        st.builds(lambda name, args: name + b"(" + b"".join(args) + b"tR", NAMES, st.lists(inner, max_size=4)),
        st.builds(lambda name, args: name + b"(" + b"".join(args) + b"t\x81", NAMES, st.lists(inner, max_size=2)),
        st.builds(lambda one, state: one + state + b"b", inner, inner),
    ),
    max_leaves=6,
)
"""The opcodes of values, of calls of any function, and of tensors with sizes and strides out of range."""

OPCODES = st.one_of(
    EXPRESSIONS,
    st.sampled_from([bytes([code]) for code in b"(.0123RbtuseaQ}])lod\x81\x85\x86\x87\x88\x89N\x94\x93"]),
    st.binary(min_size=1, max_size=4),
    st.sampled_from(
        [b"q\x00", b"h\x00", b"r\xff\xff\xff\xff", b"j\x00\x00\x00\x00", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8]
    ),
    st.sampled_from(HOSTILE).map(lambda path: b"i" + name_token(path)[1:]),
)

EDITS = st.lists(st.tuples(st.sampled_from(["replace", "insert", "remove", "swap"]), PLACES, OPCODES), max_size=4)


def edit(parts: list[bytes], edits: list[tuple[str, float, bytes]]) -> bytes:
    """The pickle after changes of its opcodes."""
    parts = list(parts)
    for kind, place, opcodes in edits:
        at = min(int(place * len(parts)), max(len(parts) - 1, 0))
        if kind == "insert":
            parts.insert(at, opcodes)
        elif not parts:
            continue
        elif kind == "replace":
            parts[at] = opcodes
        elif kind == "remove":
            del parts[at]
        else:
            parts[at], parts[0] = parts[0], parts[at]
    return b"".join(parts)
