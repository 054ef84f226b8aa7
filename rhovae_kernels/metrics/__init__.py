"""What a trained model is worth: likelihood, aggregate posterior, FID, traversals."""
