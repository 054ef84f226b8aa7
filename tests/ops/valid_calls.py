"""A right call of every op, on a small shape."""

import torch

d, H = 3, 4


def calls(device):
    """A right call of every op, by name, and of a form of its own, after a slash; sizes differ from
    one another, so that none can pass."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    def prefix(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    x, per_row, column = draw(5, 2, d), draw(5, 2), draw(5, 2, 1)
    state = torch.tensor([1, 2], device=device)
    mask = torch.tensor([True, False, True], device=device)
    weights = [draw(H, d), draw(2 * d, H)]
    prefixes = [prefix(0, 1, 1, 2), prefix(0, 0, 3, 3, 4, 4)]
    row, needs = draw(H), [True, True, True]
    coupling = (x, x, x, mask, False, "tanh")
    bins, settings = draw(5, 2, d, H), (5.0, "linear", 0.1, 0.1, 0.1, 1.0, 0.0, "unit")
    spline = (x, bins, bins, bins[..., 1:], False, *settings)
    of_splines = [weights[0], draw(8 * d, H)]
    prefixes_of_splines = [prefixes[0], prefixes[1][::2].repeat_interleave(8)]
    return {
        "linear_scan": (column, x, False, column),
        "linear_scan_backward": (x, x, x, column, True, False, needs),
        "linear_scan_backward/recompute": (x, x, x, column, True, True, needs),
        "ar1_reparam": (x, column, column, x),
        "ar1_reparam_backward": (x, per_row, x, x, column, x, [*needs, True]),
        "ar1_reparam_rng": (x, x, column, state),
        "ar1_reparam_rng_backward": (x, per_row, x, column, column, state, needs),
        "ar1_log_prob": (x, x, column, column),
        "ar1_log_prob_backward": (per_row, x, x, x, column, [*needs, False]),
        "ar1_reparam/steps": (x, column, x, x),
        "ar1_reparam_backward/steps": (x, per_row, x, x, x, x, [*needs, True]),
        "ar1_reparam_rng/steps": (x, x, x, state),
        "ar1_reparam_rng_backward/steps": (x, per_row, x, column, x, state, needs),
        "ar1_log_prob/steps": (x, x, column, x),
        "ar1_log_prob_backward/steps": (per_row, x, x, x, x, [*needs, False]),
        "markov_reparam": (x, column, x, column, x, True),
        "markov_reparam_backward": (x, x, x, x, column, x, x, True, [*needs, True, False]),
        "philox": (state, 3, 5),
        "markov_smooth": (x, x, x, column, x),
        "markov_smooth_backward": (
            *(x, x, x, per_row),
            *(x, column, x, x, column),
            [*needs, *needs[1:]],
        ),
        "iaf_gate": (x, x, x),
        "iaf_gate_backward": (x, per_row, x, x, x, needs),
        "affine_coupling": coupling,
        "affine_coupling_backward": (x, per_row, *coupling, needs),
        "rq_spline": spline,
        "rq_spline_backward": (x, per_row, *spline, [*needs, True]),
        "masked_linear": (x, weights[0], row, prefixes[0]),
        "masked_linear_backward": (draw(5, 2, H), x, weights[0], prefixes[0], needs),
        "made_inverse": (
            *(x, draw(5, 2, H), weights, [draw(2 * d)], prefixes),
            *("elu", "softplus", 0.5),
        ),
        "made_inverse/bernoulli": (
            *(x, draw(5, 2, H), [weights[0], draw(d, H)], [draw(d)]),
            *([prefixes[0], prefixes[1][::2]], "elu", "bernoulli", 0.0),
        ),
        "made_inverse/spline": (
            *(x, draw(5, 2, H), of_splines, [draw(8 * d)], prefixes_of_splines),
            *("elu", "spline", *settings),
        ),
        "made_solve/spline": (
            *(x, x, draw(5, 2, 8 * d), [draw(5, 2, H)], of_splines, prefixes_of_splines, True),
        ),
        "made_solve": (x, x, draw(5, 2, 2 * d), [draw(5, 2, H)], weights, prefixes, True),
    }
