"""markov_smooth on the CPU, against pyro's GaussianHMM, statsmodels and the loop.

The chains are stationary AR(1) ones, one a row; every step is observed with its own noise, as an
encoder gives pseudo-observations.
"""

import importlib.util

import pytest
import torch
from harness import forward_backward, verify

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost

OPS = torch.ops.rhovae
NEEDS = {"pyro": "pyro-ppl", "statsmodels": "statsmodels"}


def problem(rows: int, steps: int):
    """y, log_r, mu, log_var and rho_logit."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    y, log_r, mu = randn(rows, steps), 0.3 * randn(rows, steps), 0.1 * randn(rows, steps)
    return y, log_r, mu, torch.zeros(rows, 1), torch.full((rows, 1), 1.2)


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{NEEDS[library]} is not installed")


def gaussian_hmm(log_r, mu, logit):
    """The same model as pyro has it: one transition for all rows."""
    from pyro.distributions import GaussianHMM, MultivariateNormal

    one, rho = torch.eye(1), torch.tanh(logit[0, 0])
    return GaussianHMM(
        MultivariateNormal(torch.zeros(1), one),
        rho * one,
        MultivariateNormal(torch.zeros(1), (1 - rho.square()) * one),
        one,
        MultivariateNormal(mu[..., None], torch.exp(log_r)[..., None, None]),
        duration=mu.shape[1],
    )


def exact(inputs, rows: int = 8):
    return python_ref.markov_smooth(*(x[:rows].double() for x in inputs))


@pytest.mark.parametrize("rows,steps", [(64, 1024), (1024, 64)])
def test_forward(compare, rows, steps):
    inputs = problem(rows, steps)
    _, log_r, mu, _, logit = inputs
    expected = exact(inputs)
    ours = OPS.markov_smooth(*inputs)
    verify([x[:8] for x in ours], expected)
    variants = {
        "rhovae": lambda: OPS.markov_smooth(*inputs),
        "loop": lambda: python_ref.markov_smooth(*inputs),
    }
    limits = {"loop": 1.0}
    if importlib.util.find_spec("pyro"):
        hmm, y = gaussian_hmm(log_r, mu, logit), inputs[0][..., None]
        verify([hmm.log_prob(y)[:8]], [expected[3]])
        variants["pyro log_prob"] = lambda: hmm.log_prob(y)
        limits["pyro log_prob"] = 1 / 20 if steps == 1024 else 1.0
    spent = cost("markov_smooth", *inputs)
    shape = (rows, steps)
    compare("markov_smooth", shape, "forward", "float32", variants, "rhovae", limits, cost=spent)


def test_forward_and_backward(compare):
    rows, steps = 64, 1024
    inputs = [x.requires_grad_() for x in problem(rows, steps)]
    outputs = OPS.markov_smooth(*inputs)
    generator = torch.Generator().manual_seed(1)
    up = [torch.randn(x.shape, generator=generator) for x in outputs]
    ours = forward_backward(lambda: OPS.markov_smooth(*inputs), inputs, up)
    few = [x[:8].double() for x in (*up, *(x.detach() for x in inputs))]
    verify([g[:8] for g in ours()], python_ref.markov_smooth_backward(*few))
    variants = {
        "rhovae": ours,
        "rhovae, log p(y) alone": forward_backward(
            lambda: OPS.markov_smooth(*inputs)[3], inputs, up[3]
        ),
        "loop": forward_backward(lambda: python_ref.markov_smooth(*inputs), inputs, up),
    }
    limits = {"loop": 1.0}
    spent = (
        cost("markov_smooth", *inputs),
        cost("markov_smooth_backward", *up, *inputs, (True,) * 5),
    )
    compare(
        "markov_smooth",
        (rows, steps),
        "forward+backward",
        "float32",
        variants,
        "rhovae",
        limits,
        cost=Cost.total(*spent),
    )


def test_smoothing_and_one_posterior_sample(compare):
    needs("pyro")
    rows, steps = 64, 1024
    inputs = problem(rows, steps)
    y, log_r, mu, _, logit = inputs
    state = torch.tensor([7, 11])

    def ours():
        mean, log_var, rho_logit, _ = OPS.markov_smooth(*inputs)
        return OPS.ar1_reparam_rng(mean, log_var, rho_logit, state)[0]

    mean, log_var, rho_logit, _ = exact(inputs)
    eps = python_ref.ar1.draw(mu, state)[:8].double()
    verify([ours()[:8]], python_ref.ar1_reparam(mean, log_var, rho_logit, eps)[:1])
    hmm, observed = gaussian_hmm(log_r, mu, logit), y[..., None]
    # Its samples are of u = z − μ, and its own noise: of 500, their mean is near the mean of z.
    few = gaussian_hmm(log_r[:2], mu[:2], logit)
    drawn = few.rsample_posterior(observed[:2].expand(500, 2, steps, 1), torch.Size([500]))
    error = (drawn.mean(0)[..., 0] + mu[:2] - mean[:2]).abs()
    assert (error < 6 * torch.exp(0.5 * log_var[:2]) / 500**0.5).all()
    compare(
        "markov_smooth",
        (rows, steps),
        "forward",
        "float32",
        {"rhovae": ours, "pyro rsample_posterior": lambda: hmm.rsample_posterior(observed)},
        "rhovae",
        {"pyro rsample_posterior": 1 / 45},
        note="and a sample of the posterior",
    )


def test_against_statsmodels(compare):
    needs("statsmodels")
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    rows, steps = 64, 1024
    y, _, mu, log_var, logit = problem(rows, steps)
    # Its noise is the same at every step, its mean 0.
    inputs = (y, torch.full((rows, 1), -0.5), torch.zeros_like(mu), log_var, logit)
    rho = torch.tanh(logit[0, 0].double()).item()
    parameters = [torch.exp(inputs[1][0, 0].double()).item(), 1 - rho**2, rho]
    series = y.double().numpy()

    def theirs():
        results = []
        for row in series:
            model = UnobservedComponents(row, level=False, irregular=True, autoregressive=1)
            results.append(model.smooth(parameters))
        return results

    smoothed = theirs()
    means = torch.stack([torch.from_numpy(r.smoothed_state[0]) for r in smoothed])
    log_p = torch.tensor([r.llf for r in smoothed], dtype=torch.float64)
    mean, _, _, log_marginal = OPS.markov_smooth(*inputs)
    verify((mean, log_marginal), (means, log_p))
    compare(
        "markov_smooth",
        (rows, steps),
        "forward",
        "float32",
        {"rhovae": lambda: OPS.markov_smooth(*inputs), "statsmodels": theirs},
        "rhovae",
        {"statsmodels": 1 / 100},
        note="one noise for all steps",
    )


def test_one_long_chain(compare):
    """10⁶ steps on one core: at most 60 ms, and ten times what 10⁵ take."""
    inputs = problem(1, 1_000_000)
    part = [x[:, :100_000] for x in inputs]
    # A chain forgets: the end of a stretch of it is as that of a shorter one.
    few = [x[:, -2000:] for x in inputs]
    exact_end = python_ref.markov_smooth(*(x.double() for x in few))
    ours = OPS.markov_smooth(*inputs)
    verify([x[:, -1000:] for x in ours[:3]], [x[:, -1000:] for x in exact_end[:3]])
    threads = torch.get_num_threads()

    def on_one_core(these):
        def call():
            torch.set_num_threads(1)
            try:
                return OPS.markov_smooth(*these)
            finally:
                torch.set_num_threads(threads)

        return call

    compare(
        "markov_smooth",
        (1, 1_000_000),
        "forward",
        "float32",
        {"rhovae": on_one_core(inputs), "rhovae, 10⁵ steps": on_one_core(part)},
        "rhovae",
        {"rhovae, 10⁵ steps": 15.0},
        note="one core",
        cost=cost("markov_smooth", *inputs),
    )
