"""Imports for the server that processes are forked from; no other process imports this module."""

import os

import tensorboard.compat  # noqa: F401

import helpers.faults  # noqa: F401
import mnist_lit.evaluation.robustness
import mnist_lit.experiments.compare  # noqa: F401
from helpers.processes import end_with_parent

end_with_parent()
os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier fit: it would decide `--seed_everything true`
