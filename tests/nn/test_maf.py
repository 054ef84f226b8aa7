"""MAF and IAF: the order of dimensions, how they begin, sizes at which they are used."""

import pytest
import torch

from rhovae_kernels.nn import IAF, MADE, MAF


@pytest.mark.parametrize(
    "scale,bound,said",
    [
        ("sigmoid", 1.0, "scale is 'sigmoid'; it must be one of exp, gate"),
        ("softclip", 0.0, "bound is 0.0; it must be above 0"),
        ("softplus", -1.0, "bound is -1.0; it must be 0 or more"),
    ],
)
def test_a_scale_that_cannot_be_inverted_is_refused_in_both_directions(scale, bound, said, draw):
    with pytest.raises(ValueError, match=said):
        MAF(3, 1, (8,), scale=scale, bound=bound)
    for call in ("call_and_log_det", "inverse"):
        with pytest.raises(ValueError, match=said):
            getattr(MADE(3, (8,)), call)(draw(4, 3), None, scale, bound)


@pytest.mark.parametrize(
    "make",
    [IAF, lambda *sizes: IAF(*sizes, separate=True), MAF],
    ids=["IAF", "IAF, m and s apart", "MAF"],
)
def test_in_float32_the_inverse_is_right_to_1e_5_at_784_dimensions(make, trained, draw):
    flow = trained(make(784, 3, (800, 800)), scale=0.1)
    x = draw(8, 784)
    with torch.no_grad():
        u, log_det = flow.call_and_log_det(x)
        back, inverse_log_det = flow.inverse(u)
    assert (back - x).abs().max() <= 1e-5
    assert (log_det + inverse_log_det).abs().max() <= 1e-5 * log_det.abs().max()
    assert (u - x).abs().max() > 0.1


def test_three_hidden_layers_of_2048_at_784_dimensions_run_both_ways_with_no_mask_in_memory(draw):
    maf = MAF(784, 1, (2048, 2048, 2048))
    weights = {p.data_ptr() for p in maf.parameters()}
    # A mask holds as many elements as a weight; activations are 256 rows of 2048 at most.
    least = 784 * 2048
    assert all(b.numel() < least for b in maf.buffers())
    saved = []

    def pack(x):
        # ∂log_det and the like are small; heads of 256 × 1568 are the largest activations but one.
        if x.numel() >= least and x.data_ptr() not in weights:
            saved.append(tuple(x.shape))
        return x

    x = draw(256, 784)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        u, log_det = maf.call_and_log_det(x)
        (u.square().sum() - log_det.sum()).backward()
    with torch.no_grad():
        back, _ = maf.inverse(u)
    assert saved == []
    assert (back - x).abs().max() <= 1e-5


@pytest.mark.parametrize("separate", [False, True])
def test_an_iaf_begins_near_the_identity(separate, draw):
    z = draw(100, 8)
    with torch.no_grad():
        out, log_det = IAF(8, 1, (32, 32), separate=separate).call_and_log_det(z)
    assert torch.corrcoef(torch.stack([out.flatten(), z.flatten()]))[0, 1] > 0.95
    gate = (log_det / 8).exp().mean()
    assert gate == pytest.approx(torch.tensor(1.5).sigmoid().item(), abs=0.05)


@pytest.mark.parametrize(
    "make,mades",
    [(MAF, 1), (IAF, 1), (lambda *sizes: IAF(*sizes, separate=True), 2)],
    ids=["MAF", "IAF", "IAF, m and s apart"],
)
def test_the_order_of_dimensions_is_reversed_from_transform_to_transform(make, mades):
    reverse = [m.reverse for m in make(4, 3, (8,)).modules() if isinstance(m, MADE)]
    assert reverse == [False] * mades + [True] * mades + [False] * mades


def test_a_density_integrates_to_one(trained):
    p = trained(MAF(2, 2, (16,), scale="softclip")).double()()
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = p.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)
