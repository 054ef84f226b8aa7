"""Training on one's own data or a named set: `fit`, its settings, callbacks, checkpoints, runs."""

from rhovae_kernels.training.callbacks import Callback, State
from rhovae_kernels.training.checkpoint import Checkpoint
from rhovae_kernels.training.run import History, load_run
from rhovae_kernels.training.settings import Settings

__all__ = ["Callback", "Checkpoint", "History", "Settings", "State", "load_run"]
