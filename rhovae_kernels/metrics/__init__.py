"""What a trained model is worth: likelihood, gaps of inference, aggregate posterior, FID, paths."""

from rhovae_kernels.metrics.ais import Annealed, ais, from_model
from rhovae_kernels.metrics.evaluate import Result
from rhovae_kernels.metrics.inference_gap import Gaps, inference_gap

__all__ = ["Annealed", "Gaps", "Result", "ais", "from_model", "inference_gap"]
