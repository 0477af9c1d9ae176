"""Imports for the server that processes are forked from; no other process imports this module."""

import tensorboard.compat  # noqa: F401

import helpers.faults  # noqa: F401
import mnist_lit.evaluation.robustness
import mnist_lit.experiments.compare  # noqa: F401
from helpers.processes import end_with_parent

end_with_parent()
