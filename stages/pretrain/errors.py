"""Errors of the trainer. All of them stop the run: nothing here is a row outcome."""

from __future__ import annotations


class TrainError(RuntimeError):
    """A training or evaluation that cannot go on; the message names the file, option, step or sample at fault."""


class DataError(TrainError):
    """A dataset folder or a sample that is not what its manifest and index say."""
