"""What draws are measured against: a pass for each value must give the draws that ours gives."""

import sys
from pathlib import Path

import pytest
import torch

import rhovae_kernels as rk

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_made_inverse
import bench_pixelcnn


@torch.no_grad()
@pytest.mark.parametrize("side", [3, None], ids=["receptive field 3", "whole image"])
def test_a_pass_for_each_pixel_draws_the_images_of_a_pixelcnn(side):
    decoder = rk.decoders.PixelCNN(channels=4, layers=4, hidden=4, receptive_field=side)
    decoder.build(None, 2, (1, 5, 4))
    decoder.double()
    z = torch.randn(6, 2, dtype=torch.float64)
    ours = decoder.draw(z, torch.Generator().manual_seed(1))
    assert torch.equal(ours, bench_pixelcnn.pass_for_each_pixel(decoder, z, 1))
    assert 0 < ours.mean() < 1


@torch.no_grad()
def test_a_pass_for_each_dimension_draws_what_a_made_does():
    made = rk.nn.MADE(5, (9, 8), heads=1, activation="relu").double()
    u = torch.rand(40, 5, dtype=torch.float64)
    offset, *biases = (layer.bias for layer in made.layers)
    prefixes = [layer.prefix for layer in made.layers]
    weights = [layer.weight for layer in made.layers]
    x, log_p = rk.ops.made_inverse(
        u, offset.expand(40, -1), weights, biases, prefixes, "relu", scale="bernoulli"
    )
    masked = bench_made_inverse.masked(weights, prefixes)
    naive_x, naive_log_p = bench_made_inverse.pass_for_each_dimension(u, offset, masked, biases)
    assert torch.equal(x, naive_x) and 0 < x.mean() < 1
    torch.testing.assert_close(log_p, naive_log_p)
