"""Variational autoencoders: encoder × posterior × prior × decoder × objective, freely combined."""
