"""What a trained model is worth: likelihood, aggregate posterior, FID, traversals."""

from rhovae_kernels.metrics.ais import Annealed, ais, from_model
from rhovae_kernels.metrics.evaluate import Result

__all__ = ["Annealed", "Result", "ais", "from_model"]
