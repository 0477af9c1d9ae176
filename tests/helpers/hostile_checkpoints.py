"""Hostile checkpoints for `fuzz`: .ckpt and .safetensors."""

import hashlib
import io
import json
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

from helpers.commands import REFERENCE
from helpers.fuzzing import Fuzz, check_line, run_command
from helpers.mutations import CLASSES, MUTATIONS, OPTIONS, SIZES, VALUES, mutate
from helpers.pickle_parts import EDITS, edit, name_token, tokens, torch_file, value_tokens
from mnist_lit import UserError
from mnist_lit.checkpoints.io import SETTINGS, load, split_header
from mnist_lit.checkpoints.publish import pack_safetensors
from mnist_lit.run.restore import load_classifier

EVIL = """open("canary", "w")
from torch import nn
class Net(nn.Identity): pass
def payload(*_, **__): open("canary", "w")
"""


def small_checkpoint() -> dict[str, Any]:
    """A checkpoint of the program's own, without the state that resuming needs."""
    checkpoint = load(REFERENCE / "ds_cnn_v2" / "checkpoints" / "last.ckpt")
    return {key: checkpoint[key] for key in ("state_dict", "global_step", *SETTINGS.values())}


def saved(checkpoint: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def accepts(path: Path) -> bool:
    """Whether a checkpoint is loaded; a loaded one must classify an image, a refused one give one line."""
    try:
        model, _ = load_classifier(path)
    except UserError as error:
        check_line(str(error))
        return False
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape == (1, 10)
    return True


def damaged_checkpoints(folder: Path) -> Fuzz:
    content, path = saved(small_checkpoint()), folder / "a.ckpt"

    def write(mutations: Any) -> None:
        path.write_bytes(mutate(content, mutations))

    return Fuzz(MUTATIONS, write, partial(accepts, path))


def pickles(folder: Path) -> Fuzz:
    """Pickles in intact archives: random changes of a valid one, and of its tensors."""
    checkpoint, path = small_checkpoint(), folder / "a.ckpt"
    with zipfile.ZipFile(io.BytesIO(saved(checkpoint))) as archive:
        valid = tokens(archive.read("archive/data.pkl"))
        keys = sorted(
            (name for name in archive.namelist() if "/data/" in name), key=lambda name: int(name.split("/")[2])
        )
        storages = [archive.read(name) for name in keys]
    weights = []
    for number, (name, values) in enumerate(checkpoint["state_dict"].items()):
        kind = "torch.LongStorage" if values.dtype == torch.int64 else "torch.FloatStorage"
        storage = b"(" + value_tokens("storage") + name_token(kind) + value_tokens(str(number)) + value_tokens("cpu")
        storage += value_tokens(values.numel()) + b"tQ"
        layout = value_tokens(tuple(values.shape)) + value_tokens(values.stride()) + value_tokens(False)
        tensor = name_token("torch._utils._rebuild_tensor_v2") + b"(" + storage + value_tokens(0) + layout
        weights += [value_tokens(name), tensor + name_token("collections.OrderedDict") + b")RtR"]
    settings = [value_tokens(key) + value_tokens(checkpoint[key]) for key in ("global_step", *SETTINGS.values())]
    tensors = [b"\x80\x02", b"}(", value_tokens("state_dict"), b"}(", *weights, b"u", *settings, b"u", b"."]
    path.write_bytes(torch_file(b"".join(tensors), storages))
    load_classifier(path)

    def write(example: Any) -> None:
        parts, edits = example
        path.write_bytes(torch_file(edit(valid if parts else tensors, edits), storages))

    return Fuzz(st.tuples(st.booleans(), EDITS), write, partial(accepts, path))


def checkpoint_settings(folder: Path) -> Fuzz:
    """Settings in an otherwise intact checkpoint, loaded as `read` and as `test` do."""
    checkpoint, path = small_checkpoint(), folder / "a.ckpt"
    (folder / "evil.py").write_text(EVIL)
    (folder / "sub.yaml").write_text("class_path: evil.Net")

    def write(example: Any) -> None:
        where, changes = example
        key = SETTINGS[where]
        path.write_bytes(saved(checkpoint | {key: checkpoint[key] | changes if isinstance(changes, dict) else changes}))

    def read() -> bool:
        accepted = accepts(path)
        return run_command(["test", f"--ckpt_path={path}", "--print_config"]) and accepted

    # once, jsonargparse starts an interpreter to find the stubs of a class
    path.write_bytes(saved(checkpoint | {SETTINGS["model"]: {"backbone": {"class_path": "torch.nn.Conv2d"}}}))
    accepts(path)
    networks = st.fixed_dictionaries({"backbone": CLASSES}, optional={"augment": CLASSES, "image_size": SIZES})
    changes = st.dictionaries(OPTIONS | st.integers(), VALUES, min_size=1, max_size=3) | networks | VALUES
    return Fuzz(st.tuples(st.sampled_from(list(SETTINGS)), changes), write, read)


def safetensors_files(folder: Path) -> Fuzz:
    """Published files with other headers, settings and data, and the checksum that belongs to them."""
    content, path = pack_safetensors(small_checkpoint()), folder / "a.safetensors"
    header, data = split_header(content)
    checkpoint = json.loads(header["__metadata__"]["mnist_lit"])
    names = st.sampled_from([name for name in header if name != "__metadata__"])
    offsets = st.tuples(SIZES, SIZES).map(list)
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "I64", "F8_E4M3", "C64", "BOOL", "U8"]) | VALUES,
            "shape": st.lists(SIZES, max_size=4) | VALUES,
            "data_offsets": offsets | VALUES,
        },
    )
    changes = st.tuples(
        st.dictionaries(names, entry, max_size=2),
        st.dictionaries(st.sampled_from(["state_dict", "global_step", *SETTINGS.values()]), VALUES, max_size=2),
        st.lists(st.sampled_from(["mnist_lit", "sha256", "format"]), max_size=1),
        st.none() | SIZES,
        st.none() | MUTATIONS,
        st.none() | MUTATIONS,
    )

    def write(example: Any) -> None:
        entries, replaced, missing, size, of_header, of_data = example
        new = {name: header[name] | entries.get(name, {}) for name in header if name != "__metadata__"}
        text = json.dumps(checkpoint | {"tensors": new} | replaced)
        changed = mutate(data, of_data) if of_data else data
        metadata = {"format": "pt", "mnist_lit": text}
        metadata["sha256"] = hashlib.sha256(text.encode() + changed).hexdigest()
        new["__metadata__"] = {key: value for key, value in metadata.items() if key not in missing}
        packed = json.dumps(new).encode()
        packed = mutate(packed, of_header) if of_header else packed
        length = len(packed) if size is None else size % 2**64
        path.write_bytes(struct.pack("<Q", length) + packed + changed)

    assert safetensors.torch.load(content)
    return Fuzz(changes, write, partial(accepts, path))
