"""Strategies that damage files: changed bytes, and hostile values for JSON and YAML."""

import struct
import zlib
from typing import NamedTuple

from hypothesis import strategies as st

from helpers.fuzzing import CANARY

EXTREMES = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 10**5, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64)

SIZES = st.sampled_from([*EXTREMES, *(-value for value in EXTREMES[1:])]) | st.integers(-3, 300)

HOSTILE = (
    *("evil.Net", "evil.payload", "antigravity.geohash", "this.s", "turtledemo.clock.main", "idlelib.run.main"),
    *("os.system", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load", "functools.partial"),
    *("pathlib.Path", "shutil.rmtree", "subprocess.Popen", "torch.utils.cpp_extension.load", "builtins.open"),
    *("torch.nn.Module", "torch.nn.Sequential", "torch.nn.functional.relu", "torch.nn.modules.module.os.system"),
    *("torch.nn.modules.lazy.LazyModuleMixin", "torchvision.ops.misc.MLP", "mnist_lit.backbones.nn.Linear"),
    *(
        "lightning.pytorch.loggers.CSVLogger",
        "mnist_lit.backbones.DS_CNN_V1",
        "mnist_lit.augment.RandomAffineBatch",
        "torch.fx.GraphModule",
    ),
)
"""Class paths that run something if they are imported or called, and some that are harmless but unexpected."""

WORDS = st.sampled_from(
    [
        *HOSTILE,
        *(
            "",
            ".",
            "\n",
            "\x1b[2J",
            "\ud800",
            "7\u2028",
            "nan",
            "1e999",
            "null",
            "[",
            "{",
            "--trust",
            "../../etc/passwd",
        ),
        *("./sub.yaml", "{class_path: evil.Net}", f"open('{CANARY}', 'w')", f"touch {CANARY}", "one_cycle", "relu"),
    ]
)

SCALARS = st.none() | st.booleans() | SIZES | st.floats() | WORDS | st.text(max_size=8)

OPTIONS = st.sampled_from(
    [
        *("backbone", "augment", "image_size", "contrast", "threshold", "lr", "schedule", "warmup", "weight_decay"),
        *("class_path", "init_args", "dict_kwargs", "dilation", "dropout", "activation", "_instantiator", "degrees"),
        *("in_features", "out_features", "num_layers", "kernel_size", "padding", "scale_factor", "size"),
    ]
)

NETWORKS = st.sampled_from(
    [
        *("Linear", "Bilinear", "LSTM", "Transformer", "TransformerEncoderLayer", "Conv2d", "Embedding", "Upsample"),
        *("Identity", "Flatten", "ZeroPad2d", "AdaptiveAvgPool2d", "MultiheadAttention", "LazyLinear", "Softmax"),
    ]
).map("torch.nn.{}".format)

CLASSES = st.fixed_dictionaries(
    {"class_path": NETWORKS | st.sampled_from(HOSTILE)},
    optional={
        "init_args": st.dictionaries(OPTIONS, SCALARS, max_size=3),
        "dict_kwargs": st.dictionaries(st.sampled_from(["a", "num_layers", "size"]), SCALARS, max_size=2),
    },
)

VALUES = st.recursive(
    SCALARS | CLASSES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(OPTIONS | SCALARS.map(str), inner, max_size=4),
    max_leaves=8,
)
"""Nested plain values, with sizes out of range and hostile names."""


class Mutation(NamedTuple):
    """One change of some bytes."""

    kind: str
    place: float
    """From 0, the first byte, to 1."""
    value: int
    length: int

    def __call__(self, content: bytes) -> bytes:
        at = min(int(self.place * len(content)), max(len(content) - 1, 0))
        end, changed = at + self.length, bytearray(content)
        number = self.value % 2 ** (8 * self.length) if self.length <= 8 else 0
        match self.kind:
            case "flip" if content:
                changed[at] ^= 1 << self.value % 8
            case "little":
                changed[at:end] = number.to_bytes(self.length, "little")
            case "big":
                changed[at:end] = number.to_bytes(self.length, "big")
            case "cut":
                del changed[at:]
            case "remove":
                del changed[at:end]
            case "double":
                changed[at:at] = content[at:end]
            case "repeat":
                changed += content
        return bytes(changed)


PLACES = st.floats(0, 1) | st.floats(0, 0.05) | st.floats(0.95, 1)  # headers are at the beginning or at the end
MUTATIONS = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(["flip", "little", "big", "cut", "remove", "double", "repeat"]),
        PLACES,
        SIZES,
        st.sampled_from([1, 2, 4, 8, 100]),
    ),
    min_size=1,
    max_size=5,
)


def mutate(content: bytes, mutations: list[Mutation]) -> bytes:
    for mutation in mutations:
        content = mutation(content)
    return content


def repair_png(content: bytes) -> bytes:
    """The PNG file with correct checksums, so that its mutated content is reached."""
    repaired, at = content[:8], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunk = content[at + 4 : at + 8 + length]
        repaired += content[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return repaired
