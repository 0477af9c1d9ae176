"""Hostile MNIST files, pictures and recipes for `fuzz`."""

import gzip
import hashlib
import io
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from helpers.commands import REFERENCE, SMALL
from helpers.fuzzing import Fuzz, check_line, run_command
from helpers.hostile_checkpoints import EVIL
from helpers.mutations import HOSTILE, MUTATIONS, OPTIONS, SCALARS, VALUES, mutate, repair_png
from helpers.paper import seven
from mnist_lit import UserError
from mnist_lit.data import official
from mnist_lit.photos.mnist_form import drawing_to_digit, photo_to_digit
from mnist_lit.photos.pictures import FORMATS, UnreadableError, open_picture


def mnist_files(folder: Path) -> Fuzz:
    """Damaged IDX files, packed or not, and bombs."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 28, 28), dtype=np.uint8)
    files: dict[str, bytes] = {}
    for kind, array in (("images", pixels), ("labels", pixels[:, 0, 0] % 10)):
        name = f"t10k-{kind}-idx{array.ndim}-ubyte"
        files[name] = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes() + array.tobytes()
        official.OFFICIAL[name] = official.OfficialFile(len(files[name]), hashlib.md5(files[name]).hexdigest())
    bomb = gzip.compress(bytes(2**26)) * 64  # 4 GiB

    def write(example: Any) -> None:
        for old in folder.iterdir():
            old.unlink()
        damaged, packed, inside, outside, explodes = example
        for name, content in files.items():
            if name == damaged:
                content = mutate(content, inside)
            if packed:
                content = gzip.compress(content)
                content += bomb if explodes else b""
            if name == damaged:
                content = mutate(content, outside)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(content)

    def read() -> bool:
        try:
            images, _ = official.read_part(folder, "test")
        except UserError as error:
            check_line(str(error))
            return False
        assert torch.equal(images, torch.from_numpy(pixels)[:, None])
        return True

    damages: st.SearchStrategy[Any] = st.just([]) | MUTATIONS
    first: list[Any] = [(name, True, [], [], True) for name in files]
    return Fuzz(
        st.tuples(st.sampled_from(sorted(files)), st.booleans(), damages, damages, st.just(False)), write, read, first
    )


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def icon(width: int, height: int) -> bytes:
    """A small icon by its directory, whose picture is a large PNG."""
    content = encoded(Image.new("RGBA", (width, height)), "PNG", compress_level=1)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(content), 22) + content


def pictures(folder: Path) -> Fuzz:
    """Damaged pictures of all formats that Pillow can write, and large ones."""
    path = folder / "picture"
    Image.init()
    images = [
        seven(),
        seven("RGB", (255, 255, 255), (0, 0, 0)),
        seven("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
        seven("1", 1, 0),
    ]
    images += [
        seven("P", 0, 1),
        seven("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)),
        Image.fromarray(np.asarray(seven(), np.uint16)),
    ]
    files = []
    for form in sorted(set(FORMATS) & Image.SAVE.keys()):
        for image in images:
            try:
                files.append(encoded(image, form))
            except (OSError, ValueError, KeyError):  # the format does not have this mode
                continue
    first: list[Any] = [(icon(9000, 9000), [], False), (icon(13000, 13000), [], False)]
    first += [
        (encoded(Image.new(mode, (7000, 7000)), "TIFF", compression="tiff_lzw"), [], False)
        for mode in ("F", "I;16", "RGBA")
    ]
    first += [(encoded(Image.new(mode, (7000, 7000)), "PNG"), [], False) for mode in ("LA", "P")]
    first += [(encoded(Image.new("CMYK", (7000, 7000)), "JPEG"), [], False)]

    def write(example: Any) -> None:
        content, mutations, repaired = example
        content = mutate(content, mutations)
        path.write_bytes(repair_png(content) if repaired and content.startswith(b"\x89PNG") else content)

    def read() -> bool:
        try:
            image = open_picture(path)
        except UnreadableError as error:
            check_line(str(error))
            return False
        read = 0
        for form in (photo_to_digit, drawing_to_digit):
            try:
                digit = form(image)
            except UnreadableError as error:
                check_line(str(error))
            else:
                assert digit.shape == (28, 28)
                read += 1
        return read > 0

    return Fuzz(st.tuples(st.sampled_from(files), MUTATIONS, st.booleans()), write, read, first)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

YAML = st.sampled_from(
    [
        *(
            BOMB,
            BOMB + "data: *a11\n",
            "model: &a [*a]",
            "model: &a {backbone: *a}",
            "? [a]\n: 1",
            "- 1",
            "",
            "---\n---\n",
        ),
        *(
            "model: " + "[" * 3000,
            "model: " + "{a: " * 500 + "1" + "}" * 500,
            "trainer:\n" + " -" * 2000,
            "a: " + "9" * 5000,
        ),
        *(
            "data: {data_dir: 2024-99-99}",
            "data: {data_dir: 2024-02-02}",
            "model: {lr: !!int ''}",
            "model: {lr: !!float x}",
        ),
        *(
            "model: !!python/object/apply:os.system ['touch canary']",
            "model: !!python/name:evil.Net",
            "model: !!binary x",
        ),
        *(
            "model: !!set {a, b}",
            "model: {lr: 1e999}",
            "model: {lr: 1:30:00}",
            "<<: [1]",
            "model: {<<: &a {lr: 1}, <<: *a}",
        ),
        *(
            "\ufeffmodel: {}",
            "model: ./sub.yaml",
            "trainer: sub.yaml",
            "model: {backbone: sub.yaml}",
            "%YAML 9.9\n---\na: 1",
        ),
        *(
            "config: bad.yaml",
            "trust: [evil]",
            "subcommand: test",
            "ckpt_path: last",
            "print_config: true",
            "seed_everything: 9",
        ),
    ]
)

SECTIONS = st.sampled_from(
    ["model", "data", "trainer", "seed_everything", "ckpt_path", "trust", "watch_test", "optimizer"]
)
KEYS = st.sampled_from(
    [
        *("max_epochs", "callbacks", "logger", "devices", "strategy", "precision", "max_time", "default_root_dir"),
        *("accelerator", "plugins", "profiler", "limit_train_batches", "source", "data_dir", "val_size", "folds"),
    ]
)


def texts(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Recipes: valid YAML of wrong values, hostile YAML, and any bytes."""
    section = values | st.dictionaries(KEYS | OPTIONS, values, max_size=3)
    plain = st.dictionaries(SECTIONS, section, max_size=3).map(
        lambda recipe: yaml.safe_dump(recipe, allow_unicode=True)
    )
    return st.one_of(
        plain.map(lambda text: text.encode(errors="replace")),
        YAML.map(str.encode),
        st.binary(max_size=40),
        st.builds(mutate, plain.map(lambda text: text.encode(errors="replace")), MUTATIONS),
    )


def recipes(folder: Path) -> Fuzz:
    """Recipes on the command line; they may name any class, so these name harmless ones."""
    path = folder / "bad.yaml"
    harmless = [name for name in HOSTILE if name.startswith(("torch.nn.", "torchvision.ops.", "mnist_lit."))]
    classes = st.fixed_dictionaries({"class_path": st.sampled_from(harmless)}, optional={"init_args": VALUES})
    scalars = SCALARS.filter(lambda value: value not in HOSTILE and "evil" not in str(value))

    def write(example: bytes) -> None:
        path.write_bytes(example)
        (folder / "sub.yaml").write_bytes(example)

    def read() -> bool:
        return run_command(["fit", f"--config={path}", "--print_config"])

    return Fuzz(texts(scalars | classes | st.lists(scalars, max_size=3)), write, read)


def run_configs(folder: Path) -> Fuzz:
    """The config.yaml of a run that somebody else has made, and that is resumed."""
    checkpoints = folder / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(REFERENCE / "ds_cnn_v2" / "checkpoints" / "last.ckpt", checkpoints)
    (folder / "evil.py").write_text(EVIL)
    path = folder / "run" / "config.yaml"

    def write(example: bytes) -> None:
        path.write_bytes(example)
        (folder / "sub.yaml").write_bytes(example)

    def read() -> bool:
        return run_command(["fit", f"--ckpt_path={checkpoints / 'last.ckpt'}", "--print_config", *SMALL[-2:]])

    return Fuzz(texts(VALUES), write, read)
