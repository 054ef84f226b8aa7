"""The command `rhovae`."""

from rhovae_kernels.cli import measure, reproduce, tools, train
from rhovae_kernels.cli.app import app, main

__all__ = ["app", "main", "measure", "reproduce", "tools", "train"]
