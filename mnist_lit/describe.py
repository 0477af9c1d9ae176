"""Describe networks and machines, and format tables."""

import copy
import os
import platform
import re
from datetime import date
from pathlib import Path

import lightning
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnist_lit.classifier import DigitClassifier


def parameter_count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(weights.numel() for weights in module.parameters() if weights.requires_grad)


def multiply_adds(model: DigitClassifier) -> int:
    """Multiply-add operations of the backbone's convolutions and linear layers for one image."""
    backbone = copy.deepcopy(model.backbone).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        inputs = model.preprocess(torch.zeros(1, 1, 28, 28, device=model.device))
        with counter:
            backbone(inputs)
    return counter.get_total_flops() // 2


def describe_environment(device: torch.device) -> str:
    """Hardware, number of threads, versions and date, for reports of measurements on the device."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    processor = names[0] if names else platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = f"{torch.cuda.get_device_name(device)}; {processor}"
    threads = torch.get_num_threads()
    return (
        f"{processor}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}; torch {torch.__version__}, "
        f"lightning {lightning.__version__}, Python {platform.python_version()}; {date.today()}."
    )


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"
