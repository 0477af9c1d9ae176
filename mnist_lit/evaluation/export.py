"""`mnist-lit export`: save a checkpoint as one ONNX or torch.export file, checked against the checkpoint."""

import argparse
import math
import statistics
import tempfile
import timeit
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from mnist_lit import UserError, files
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import OUTPUTS
from mnist_lit.data import official
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE, MNISTDataModule
from mnist_lit.describe import describe_environment, multiply_adds, parameter_count
from mnist_lit.evaluation.images import in_batches
from mnist_lit.run.restore import load_classifier

OPSET = 20
"""ONNX operator set: the first with GridSample as torch exports it (2023)."""

TOLERANCE = 1e-5
"""Largest allowed difference between a probability of the exported file and of the checkpoint."""

CALIBRATION_IMAGES = 2_000
"""Training images from which int8 quantization takes the ranges of activations."""

Predict = Callable[[Tensor], Tensor]
"""Function of images, uint8 (N, 1, 28, 28), that returns probabilities (N, 10)."""


def main(options: argparse.Namespace, tolerance: float = TOLERANCE) -> None:
    """Run `mnist-lit export`.

    Args:
        options: Options of the command line.
        tolerance: Largest allowed difference of a probability, except for int8.

    Raises:
        UserError: A file cannot be read or written, or the exported file predicts other digits than the checkpoint.
    """
    output, suffix = files.expand(options.output or OUTPUTS[options.format]), Path(OUTPUTS[options.format]).suffix
    if output.suffix != suffix:
        raise UserError(f"--output {output}: a file of --format {options.format} ends in {suffix}.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}.")
    checkpoint = find_checkpoint(options.ckpt_path)
    model, trained_on = load_classifier(checkpoint, options.trust)
    data = _data(options, trained_on)
    test = data.splits["test"]
    is_trained_on = (trained_on.get("source"), data.source) == ("mnist", "sample")
    parts = OrderedDict(preprocess=model.preprocess, backbone=model.backbone, softmax=nn.Softmax(dim=1))
    network = nn.Sequential(parts).eval()
    with tempfile.TemporaryDirectory() as folder:  # an existing file is replaced only after the comparison
        path = Path(folder) / output.name
        exported = save(network, options.format, path, data)
        allowed = math.inf if options.format == "int8" else tolerance
        kind = "training images (the sample)" if is_trained_on else "test images"
        comparison = compare(exported, network, test.images, test.labels, allowed, kind)
        sizes = f"{parameter_count(model):,} parameters in {_weight_bytes(path, model):,} bytes"
        content = path.read_bytes()
    try:
        files.write_atomically(output, content)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}.") from error
    print(f"{output}: {len(content):,} bytes; {sizes}, {multiply_adds(model):,} multiply-adds (2 FLOPs each) per image")
    print(comparison)
    print(f"Latency: {_latency_ms(exported):.2f} ms per image, one thread. {describe_environment(torch.device('cpu'))}")


def _data(options: argparse.Namespace, trained_on: dict[str, Any]) -> MNISTDataModule:
    """The images to compare with: by default those of the checkpoint's dataset, or the sample if they are missing."""
    own = trained_on.get("source", "mnist")
    source = options.source or own
    if not options.source and own == "mnist" and official.find_missing(files.expand(options.data_dir)):
        print(f"MNIST is not in {options.data_dir}: the file is compared with the checkpoint on the sample.")
        source = "sample"
    data = MNISTDataModule(source, options.data_dir, val_size=trained_on.get("val_size") if source == own else None)
    data.prepare_data()
    data.setup("test")
    return data


def save(network: nn.Module, format: str, path: Path, data: MNISTDataModule) -> Predict:  # noqa: A002
    """Save a network of images to probabilities, and return the function that runs the saved file."""
    example = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    with warnings.catch_warnings(action="ignore"):  # about torch's own code
        if format == "torch":
            torch.export.save(program, path)
            predict: Predict = torch.export.load(path).module()
            return predict
        exported = torch.onnx.export(
            program, (), opset_version=OPSET, input_names=["images"], output_names=["probabilities"], verbose=False
        )
    assert exported
    onnx.save(_without_metadata(exported.model_proto), path)
    if format == "int8":
        data.setup("fit")
        _quantize(path, data.splits["train"].images[:CALIBRATION_IMAGES])
    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove torch's notes on its source code: two thirds of the file, and paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    return model


def _quantize(path: Path, images: Tensor) -> None:
    """Replace an ONNX file by its int8 version, calibrated on images (N, 1, 28, 28)."""
    preprocessed = path.with_suffix(".float.onnx")
    quant_pre_process(path, preprocessed, skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        preprocessed,
        path,
        _CalibrationImages(images),
        op_types_to_quantize=["Conv", "Gemm"],  # the preprocessing remains float32
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Images (N, 1, 28, 28) in batches, as onnxruntime reads them."""

    def __init__(self, images: Tensor) -> None:
        self.batches = iter(torch.split(images, EVAL_BATCH_SIZE))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the name of the network's input, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def _weight_bytes(path: Path, model: DigitClassifier) -> int:
    """Bytes of the backbone's weights in an exported file, including int8's scales."""
    if path.suffix == ".pt2":
        return sum(weights.nbytes for weights in model.backbone.parameters())
    tensors = onnx.load(path).graph.initializer
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors if tensor.name.startswith("backbone"))


@torch.inference_mode()
def compare(
    exported: Predict, network: Predict, images: Tensor, labels: Tensor, tolerance: float, kind: str = "test images"
) -> str:
    """Compare an exported file with the checkpoint's network on images (N, 1, 28, 28), and return a report.

    Raises:
        UserError: A probability differs by more than the tolerance, or a digit differs although it is finite.
    """
    outputs, expected = in_batches(exported, images), in_batches(network, images)
    changed = int((outputs.argmax(1) != expected.argmax(1)).sum())
    difference = (outputs - expected).abs().max().item()
    if difference > tolerance or (changed and math.isfinite(tolerance)):
        raise UserError(
            f"The exported file predicts {changed} digits differently; probabilities differ by up to {difference:.1g}."
        )
    accuracy, expected_accuracy = (100 * (p.argmax(1) == labels).double().mean().item() for p in (outputs, expected))
    return (
        f"{accuracy:.2f} % of {len(images):,} {kind} correct, checkpoint {expected_accuracy:.2f} %; "
        f"{changed} digits predicted differently, probabilities differ by at most {difference:.1g}"
    )


@torch.inference_mode()
def _latency_ms(predict: Predict) -> float:
    """Median time in milliseconds for one image, on one thread."""
    image, threads = torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.get_num_threads()
    torch.set_num_threads(1)
    times = timeit.repeat(lambda: predict(image), repeat=200, number=1)
    torch.set_num_threads(threads)
    return 1000 * statistics.median(times)
