"""A checkpoint as one file for other programs, checked against it."""

import argparse
import statistics
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mnist_lit import UserError, files
from mnist_lit.checkpoints.io import find
from mnist_lit.classifier import DigitClassifier, load_classifier
from mnist_lit.commands import OUTPUTS
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE, MNISTDataModule, read_test_images
from mnist_lit.experiments.report import describe_environment, multiply_adds

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter asks for it
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ModuleNotFoundError as error:
    raise UserError("mnist-lit export needs ONNX: uv run --extra export mnist-lit export ...") from error

OPSET = 20
"""Of ONNX: the first with GridSample in its present form, from 2023."""

TOLERANCE = 1e-5
"""Largest difference of a probability from the checkpoint's."""

CALIBRATED_ON = 2_000
"""Training images that int8's ranges of values are taken from."""

Read = Callable[[Tensor], Tensor]
"""Probabilities (N, 10) of images, uint8 (N, 1, 28, 28)."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit export` with its options.

    Raises:
        UserError: The checkpoint or the data cannot be read, the file cannot be written, or reads otherwise.
    """
    output = Path(options.output or OUTPUTS[options.format])
    suffix = Path(OUTPUTS[options.format]).suffix
    if output.suffix != suffix:
        raise UserError(f"--output {output}: a file of --format {options.format} ends in {suffix}.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}.")
    checkpoint = find(options.ckpt_path)
    model, trained_on = load_classifier(checkpoint, options.trust)
    source = options.source or trained_on.get("source", "mnist")
    data = MNISTDataModule(source, options.data_dir, val_size=trained_on.get("val_size"))
    test = read_test_images(data, {checkpoint: trained_on})
    parts = OrderedDict(preprocess=model.preprocess, backbone=model.backbone, softmax=nn.Softmax(dim=1))
    network = nn.Sequential(parts).eval()
    with tempfile.TemporaryDirectory() as folder:  # an earlier file stays until this one is known to be right
        written = Path(folder) / output.name
        read = _write(network, options.format, written, data)
        compared = _compare(network, read, test.images, test.labels, options.format == "int8")
        weights = f"{model.parameter_count:,} parameters in {_weight_bytes(written, model):,} bytes"
        content = written.read_bytes()
    try:
        files.write(output, content)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}.") from error
    print(f"{output}: {len(content):,} bytes; {weights}, {multiply_adds(model):,} multiply-adds an image")
    print(compared)
    print(f"One image takes {_latency_ms(read):.2f} ms, on one thread. {describe_environment(torch.device('cpu'))}")


def _write(network: nn.Module, kind: str, output: Path, data: MNISTDataModule) -> Read:
    """Write the network of images to probabilities in a format, into a folder for it, and give what reads it."""
    example = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    if kind == "torch":
        with warnings.catch_warnings(action="ignore"):  # torch's, of itself
            torch.export.save(program, output)
        read: Read = torch.export.load(output).module()
        return read
    with warnings.catch_warnings(action="ignore"):  # torch's, of itself
        exported = torch.onnx.export(
            program, (), opset_version=OPSET, input_names=["images"], output_names=["probabilities"], verbose=False
        )
    assert exported
    graph = exported.model_proto
    _strip(graph)
    onnx.save(graph, output)
    if kind == "int8":
        data.setup("fit")
        plain = output.with_suffix(".plain.onnx")
        quant_pre_process(output, plain, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            plain,
            output,
            _Images(data.splits["train"].images[:CALIBRATED_ON]),
            op_types_to_quantize=["Conv", "Gemm"],  # preprocessing stays as it is
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    onnx.checker.check_model(onnx.load(output), full_check=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(output, settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _strip(graph: onnx.ModelProto) -> None:
    """Take out what torch notes of its source, two thirds of the file and paths of this machine."""
    parts = (graph.graph.node, graph.graph.input, graph.graph.output, graph.graph.initializer)
    for part in (graph, graph.graph, *(part for some in parts for part in some)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.graph.ClearField("value_info")


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands out images (N, 1, 28, 28) in batches, as onnxruntime asks for them."""

    def __init__(self, images: Tensor) -> None:
        self.batches = iter(torch.split(images, EVAL_BATCH_SIZE))

    def get_next(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] | None:
        """The next batch by the name of the input."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def _weight_bytes(output: Path, model: DigitClassifier) -> int:
    """What the network's weights take in the file, with int8's scales, without preprocessing and the graph."""
    if output.suffix == ".pt2":
        return sum(weights.nbytes for weights in model.backbone.parameters())
    tensors = onnx.load(output).graph.initializer
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors if tensor.name.startswith("backbone"))


@torch.inference_mode()
def _compare(network: nn.Module, read: Read, images: Tensor, labels: Tensor, lossy: bool) -> str:
    """In words, how what was written reads images (N, 1, 28, 28), beside the checkpoint.

    Raises:
        UserError: It should give what the checkpoint gives, and does not.
    """
    theirs, ours = (
        torch.cat([reader(batch) for batch in torch.split(images, EVAL_BATCH_SIZE)]) for reader in (read, network)
    )
    others = int((theirs.argmax(1) != ours.argmax(1)).sum())
    apart = (theirs - ours).abs().max().item()
    accuracies = [100 * (given.argmax(1) == labels).double().mean().item() for given in (theirs, ours)]
    if not lossy and (others or apart > TOLERANCE):
        raise UserError(f"Exported, it reads {others} digits otherwise; probabilities are up to {apart:.1g} apart.")
    return (
        f"{accuracies[0]:.2f} % of {len(images):,} test images, the checkpoint {accuracies[1]:.2f} %; "
        f"{others} digits read otherwise, probabilities at most {apart:.1g} apart"
    )


@torch.inference_mode()
def _latency_ms(read: Read) -> float:
    """Median milliseconds to read one image."""
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        read(image)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 1000 * statistics.median(times)
