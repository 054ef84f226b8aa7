"""The points of the two moons."""

import torch

from rhovae_kernels.data import named


def test_two_moons_are_points_drawn_from_the_seed_and_the_split():
    moons = named.load("two-moons")
    assert moons.input_shape == (2,) and moons.label == "continuous"
    assert moons.images.shape == (2000, 2) and set(moons.labels.tolist()) == {0, 1}
    assert torch.equal(moons.images, named.load("two-moons").images)
    assert not torch.equal(moons.images, named.load("two-moons", seed=1).images)
    held_out = named.load("two-moons", split="test").images
    assert not torch.isin(held_out, moons.images).all(1).any()
