"""affine_coupling: the contract, the whole Jacobian, inversion, what the mask hides."""

import math

import pytest
import torch
from contract import Contract, normal
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref

OPS = torch.ops.rhovae
DIRECTIONS = [False, True]
BOUNDS = ["none", "tanh"]


def mask_of(d, device="cpu", seed=0):
    """About half of it true, in no order."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(d, generator=generator) < 0.5).to(device)


class TestAffineCoupling(Contract):
    op = "affine_coupling"
    variants = ("forward", "inverse", "forward_tanh", "inverse_tanh")
    differentiable = (0, 1, 2)
    results = (0, 1)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        x = normal(batch, d, dtype, device, 10 * seed)
        log_scale = 0.5 * normal(batch, d, torch.float64, "cpu", 10 * seed + 1)
        shift = normal(batch, d, dtype, device, 10 * seed + 2)
        mask = mask_of(d, device, seed)
        bound = "tanh" if "tanh" in variant else "none"
        return [x, log_scale.to(dtype).to(device), shift, mask, "inverse" in variant, bound]

    def wrong_inputs(self):
        x, mask = torch.ones(2, 3), mask_of(3)
        scalar = torch.tensor(1.0)
        yield "a scalar", (scalar, scalar, scalar, mask), "x"
        yield "integers", (x.long(), x.long(), x.long(), mask), "x"
        yield "a shape", (x, torch.ones(2, 4), x, mask), "log_scale"
        yield "a scale per row", (x, torch.ones(2, 1), x, mask), "log_scale"
        yield "leading dimensions", (x, x, torch.ones(3, 3), mask), "shift"
        yield "two types", (x, x.double(), x, mask), "log_scale"
        yield "two devices", (x, x, x.to("meta"), mask), "shift"
        yield "a mask of numbers", (x, x, x, mask.float()), "mask"
        yield "a mask too long", (x, x, x, mask_of(4)), "mask"
        yield "a mask per row", (x, x, x, mask.expand(2, 3)), "mask"
        yield "a mask elsewhere", (x, x, x, mask.to("meta")), "mask"
        yield "a bound of no kind", (x, x, x, mask, False, "sigmoid"), "bound"


# Oracles that share nothing with the formula.


def masks(d):
    index = torch.arange(d)
    yield "random", mask_of(d)
    yield "half", index < d // 2
    yield "other half", index >= d // 2
    yield "checkerboard", index % 2 == 0
    yield "all", index >= 0
    yield "none", index < 0


@pytest.mark.parametrize("d", [1, 2, 7, 37])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_log_det_is_that_of_the_whole_jacobian(backend, d, inverse, bound):
    weights = normal((2, d), d, torch.float64, backend.device, 5) / math.sqrt(d)
    x = normal((), d, torch.float64, backend.device, 6)
    for name, mask in masks(d):
        mask = mask.to(backend.device)

        def layer(v, mask=mask):
            # The network sees what passes, which is the same on both sides of the layer.
            log_scale, shift = weights @ torch.where(mask, v, 0.0)
            return OPS.affine_coupling(v, log_scale, shift, mask, inverse, bound)

        jacobian = torch.autograd.functional.jacobian(lambda v, layer=layer: layer(v)[0], x)
        log_det = torch.linalg.slogdet(jacobian.cpu()).logabsdet
        torch.testing.assert_close(layer(x)[1].cpu(), log_det, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("d", [1, 21, 130])
def test_the_inverse_undoes_the_layer_and_its_log_det(backend, d, bound):
    x, log_scale, shift, *_ = TestAffineCoupling().inputs("forward", (4,), d, torch.float64)
    for name, mask in masks(d):
        rest = [v.to(backend.device) for v in (log_scale, shift, mask)]
        y, log_det = OPS.affine_coupling(x.to(backend.device), *rest, False, bound)
        back, undone = OPS.affine_coupling(y, *rest, True, bound)
        torch.testing.assert_close(back.cpu(), x, rtol=1e-12, atol=1e-12, msg=name)
        assert torch.equal(undone, -log_det), name


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_many_rows_of_few_columns_are_right_in_any_layout(backend, dtype, inverse, bound):
    # 37 rows: whole vectors of every type, and a rest.
    rows = 37
    for d in range(1, 6):
        side_by_side = normal((rows,), 3 * d, dtype, "cpu", d).chunk(3, -1)
        up = (
            normal((rows,), d, dtype, "cpu", 10 + d),
            normal((), rows, torch.promote_types(dtype, torch.float32), "cpu", 20 + d),
        )
        mask = mask_of(d, seed=d)
        exact = [v.double().requires_grad_() for v in side_by_side]
        expected = python_ref.affine_coupling(*exact, mask, inverse, bound)
        expected = (*expected, *torch.autograd.grad(expected, exact, [u.double() for u in up]))
        for layout in (side_by_side, [v.contiguous() for v in side_by_side]):
            inputs = [v.detach().to(backend.device).requires_grad_() for v in layout]
            outputs = OPS.affine_coupling(*inputs, mask.to(backend.device), inverse, bound)
            there = [u.to(backend.device) for u in up]
            actual = (*outputs, *torch.autograd.grad(outputs, inputs, there))
            for name, a, e in zip(
                ("y", "log_det", "d_x", "d_log_scale", "d_shift"), actual, expected, strict=True
            ):
                assert_matches(a.detach().cpu(), e.detach(), dtype, f"{name}, d = {d}")


# The mask.


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_the_mask_hides_has_no_effect_and_no_gradient(backend, dtype, inverse, bound):
    for d in (1, 3, 5, 16, 45):
        for name, mask in masks(d):
            x, log_scale, shift, *_ = TestAffineCoupling().inputs("forward", (3,), d, dtype)
            results = []
            # A row each.
            values = torch.tensor([[math.nan], [math.inf], [-math.inf]], dtype=dtype)
            for hidden in (torch.zeros_like(values), values):
                inputs = [
                    v.to(backend.device).requires_grad_()
                    for v in (
                        x,
                        torch.where(mask, hidden, log_scale),
                        torch.where(mask, hidden, shift),
                    )
                ]
                here = mask.to(backend.device)
                outputs = OPS.affine_coupling(*inputs, here, inverse, bound)
                up = [u.to(backend.device) for u in TestAffineCoupling().upstream(outputs)]
                gradients = torch.autograd.grad(outputs, inputs, up)
                assert torch.equal(outputs[0][:, here], inputs[0][:, here]), name
                assert torch.equal(gradients[0][:, here], up[0][:, here]), name
                for g in gradients[1:]:
                    assert torch.equal(g[:, here], torch.zeros_like(g[:, here])), name
                results.append((*outputs, *gradients))
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b), name


def test_a_negative_zero_that_passes_stays_one(backend):
    x = torch.tensor([[-0.0, 1.0]], device=backend.device)
    mask = torch.tensor([True, False], device=backend.device)
    y, _ = OPS.affine_coupling(x, x, x, mask)
    assert torch.signbit(y[0, 0])


def test_the_mask_may_be_a_view_with_gaps(backend):
    inputs = TestAffineCoupling().inputs("forward_tanh", (3,), 45, torch.float32, backend.device)
    x, log_scale, shift, mask, *rest = inputs
    expected = OPS.affine_coupling(*inputs)
    gaps = torch.stack([mask, ~mask], -1)[:, 0]
    backwards = mask.flip(0).unsqueeze(0).expand(2, -1)[0]
    assert not gaps.is_contiguous()
    for actual, e in zip(
        OPS.affine_coupling(x, log_scale, shift, gaps, *rest), expected, strict=True
    ):
        assert torch.equal(actual, e)
    flipped = OPS.affine_coupling(x.flip(-1), log_scale.flip(-1), shift.flip(-1), backwards, *rest)
    torch.testing.assert_close(flipped[0].flip(-1), expected[0])


@pytest.mark.parametrize("d", [2049, 5003])
def test_a_mask_of_any_extent_is_right_over_several_tiles(backend, d):
    if backend.name == "reference":
        pytest.skip("the reference has no tiles")
    contract = TestAffineCoupling()
    index = torch.arange(d)
    for mask in (index < 2048, index >= 2048, (index < 100) | (index > 2060), index == d - 1):
        for variant in ("forward_tanh", "inverse"):
            inputs = contract.inputs(variant, (2,), d, torch.float32, backend.device)
            inputs[3] = mask.to(backend.device)
            contract.check(inputs, torch.float32, variant)


def test_vmap_over_masks_equals_a_loop(backend):
    x, log_scale, shift, _, inverse, bound = TestAffineCoupling().inputs(
        "inverse_tanh", (3, 2), 7, torch.float64, backend.device
    )
    several = torch.stack([mask_of(7, backend.device, seed) for seed in range(3)])

    def loss(x, log_scale, shift, mask):
        y, log_det = OPS.affine_coupling(x, log_scale, shift, mask, inverse, bound)
        return y.sin().sum() + log_det.sin().sum()

    every = torch.func.grad(loss, (0, 1, 2))
    for in_dims in ((0, 0, 0, 0), (0, None, 0, 0), (None, None, None, 0)):
        args = [
            v if dim == 0 else v[0]
            for v, dim in zip((x, log_scale, shift, several), in_dims, strict=True)
        ]
        actual = torch.vmap(every, in_dims)(*args)
        for b in range(3):
            one = every(*(v[b] if dim == 0 else v for v, dim in zip(args, in_dims, strict=True)))
            for a, e in zip(actual, one, strict=True):
                torch.testing.assert_close(a[b], e, rtol=1e-12, atol=1e-12)


# The bound.


@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("value", [3.0, 9.0, 20.0, 40.0, -9.0, -40.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_saturated_bound_keeps_the_relative_digits_of_its_gradient(
    backend, dtype, value, inverse
):
    # In float32 tanh rounds to 1 at 9, where its derivative is 6e-8 and not 0.
    x, log_scale, shift = (
        torch.full((1, 1), v, dtype=dtype, device=backend.device).requires_grad_()
        for v in (1.0, value, -1.0)
    )
    mask = torch.tensor([False], device=backend.device)
    y, log_det = OPS.affine_coupling(x, log_scale, shift, mask, inverse, "tanh")
    (d_y,) = torch.autograd.grad(y.sum(), log_scale, retain_graph=True)
    (d_log_det,) = torch.autograd.grad(log_det.sum(), log_scale)
    sign = -1 if inverse else 1
    s = sign * math.tanh(value)
    sech2 = 1 / math.cosh(value) ** 2
    wanted = (
        (2.0 if inverse else 1.0) * math.exp(s) - (0.0 if inverse else 1.0),
        s,
        sign * (2.0 if inverse else 1.0) * math.exp(s) * sech2,
        sign * sech2,
    )
    # In float32 2|x|·log2(e) ≤ 116 may be rounded before 2 is raised to it, by half of 2⁻¹⁷. Of
    # bfloat16 a whole unit: Triton's interpreter cuts off where a GPU rounds.
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for i, (actual, e) in enumerate(zip((y, log_det, d_y, d_log_det), wanted, strict=True)):
        rounding = 2.0**-7 if actual.dtype == torch.bfloat16 else 0
        assert abs(actual.item() - e) <= (bound + rounding) * abs(e), f"result {i}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_bound_its_slope_and_its_scale_are_right_to_units_in_the_last_place(dtype):
    # One element a row: log_det is tanh itself, its gradient sech², and y its exponential. The
    # oracle has 30 digits.
    import mpmath

    u = torch.cat([torch.linspace(-12, 12, 1601), torch.logspace(-8, 1, 400)]).to(dtype)[:, None]
    zero, mask = torch.zeros_like(u), torch.tensor([False])
    with rk.use_backend("cpu"):
        leaf = u.clone().requires_grad_()
        y, log_det = OPS.affine_coupling(zero + 1, leaf, zero, mask, False, "tanh")
        (slope,) = torch.autograd.grad(log_det.sum(), leaf)
    eps = torch.finfo(dtype).eps
    with mpmath.workdps(30):
        for x, *results in zip(
            *(v.flatten().tolist() for v in (u, log_det, slope, y)), strict=True
        ):
            tanh = mpmath.tanh(x)
            # e^tanh inherits the two units that tanh may be off by.
            wanted = ((tanh, 2), (mpmath.sech(x) ** 2, 4), (mpmath.exp(tanh), 4))
            for i, (actual, (exact, ulps)) in enumerate(zip(results, wanted, strict=True)):
                assert abs(actual - exact) <= ulps * eps * abs(exact), f"result {i} at {x}"


def test_without_a_bound_a_scale_is_taken_as_it_is(backend):
    x = torch.ones(1, 3, device=backend.device)
    log_scale = torch.tensor([[60.0, -60.0, 0.0]], device=backend.device)
    mask = torch.zeros(3, dtype=torch.bool, device=backend.device)
    y, log_det = rk.ops.affine_coupling(x, log_scale, 0 * x, mask, bound="none")
    expected = torch.exp(log_scale.cpu().double())
    assert ((y.cpu().double() - expected).abs() <= 1e-5 * expected).all()
    assert log_det.item() == 0
    bounded, _ = rk.ops.affine_coupling(x, log_scale, 0 * x, mask, bound="tanh")
    assert_matches(bounded.cpu(), torch.tensor([[math.e, 1 / math.e, 1.0]]), torch.float32, "tanh")


def test_an_empty_row_has_a_log_det_of_zero(backend):
    empty = torch.empty(3, 0, device=backend.device, requires_grad=True)
    mask = torch.empty(0, dtype=torch.bool, device=backend.device)
    y, log_det = OPS.affine_coupling(empty, empty, empty, mask)
    assert y.shape == (3, 0)
    assert torch.equal(log_det, torch.zeros(3, device=backend.device))


def test_the_specification_is_the_textbook_formula():
    x, log_scale, shift, mask, *_ = TestAffineCoupling().inputs("forward", (4,), 9, torch.float64)
    b = mask.double()
    for bound, s in (("none", log_scale), ("tanh", torch.tanh(log_scale))):
        y, log_det = python_ref.affine_coupling(x, log_scale, shift, mask, False, bound)
        torch.testing.assert_close(y, b * x + (1 - b) * (x * torch.exp(s) + shift))
        torch.testing.assert_close(log_det, ((1 - b) * s).sum(-1))
        back, _ = python_ref.affine_coupling(y, log_scale, shift, mask, True, bound)
        torch.testing.assert_close(back, b * y + (1 - b) * ((y - shift) * torch.exp(-s)))


def test_the_number_of_threads_does_not_change_a_bit_of_a_long_row():
    threads = torch.get_num_threads()
    inputs = TestAffineCoupling().inputs("forward_tanh", (2,), 100_000, torch.float32)
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            with rk.use_backend("cpu"):
                results.append(OPS.affine_coupling(*inputs))
    finally:
        torch.set_num_threads(threads)
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)
