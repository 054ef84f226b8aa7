"""The command `rhovae`."""

from rhovae_kernels.cli import gap, measure, reproduce, tools, train
from rhovae_kernels.cli.app import app, main

__all__ = ["app", "gap", "main", "measure", "reproduce", "tools", "train"]
