"""Draws of a PixelCNN on the CPU, every feature computed once, against a pass for each pixel.

The other way is that of the same network in eager PyTorch: the whole image goes through it once for
each pixel, of which the next one is drawn. It is run whole, from the same uniform numbers, and in
float64 both must give the same images.
"""

import pytest
import torch
from harness import WrongResult

import rhovae_kernels as rk

N, SHAPE, LATENT = 16, (1, 28, 28), 8
# The speed-up that Ramachandran et al., 2017, https://arxiv.org/abs/1704.06001, give for 16 images.
TIMES = 183


def pass_for_each_pixel(decoder, z, seed):
    """The images that `decoder.draw` gives with a generator of this seed."""
    weight = decoder.net.last.weight
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(z), *decoder.input_shape, dtype=weight.dtype, generator=generator)
    x, of_places = torch.zeros_like(uniform), decoder.of_places(z)
    _, height, width = decoder.input_shape
    for i in range(height):
        for j in range(width):
            p = torch.sigmoid((decoder.net(x, z) + of_places)[:, :, i, j])
            x[:, :, i, j] = (uniform[:, :, i, j] < p).to(x.dtype)
    return x


@torch.no_grad()
@pytest.mark.parametrize("side", [15, None], ids=["receptive field 15", "whole image"])
def test_draws(compare, side):
    torch.manual_seed(0)
    decoder = rk.decoders.PixelCNN(channels=32, layers=7, receptive_field=side)
    decoder.build(None, LATENT, SHAPE)
    z = torch.randn(N, LATENT)

    def ours(z=z):
        return decoder.draw(z, torch.Generator().manual_seed(1))

    decoder.double()
    few = z[:2].double()
    if not torch.equal(ours(few), pass_for_each_pixel(decoder, few, 1)):
        raise WrongResult("in float64 the images are others")
    decoder.float()
    variants = {
        "rhovae": ours,
        "a pass for each pixel": lambda: pass_for_each_pixel(decoder, z, 1),
    }
    compare(
        "PixelCNN, a draw",
        (N, *SHAPE),
        "draw",
        "float32",
        variants,
        "rhovae",
        {"a pass for each pixel": 1 / TIMES},
        note=f"7 layers of 32, receptive field {decoder.receptive_field}",
    )
