"""Training on one's own data or a named set: `fit`, its settings, checkpoints and runs."""
