"""What the ops are measured against: what people use today for the same results."""

import importlib.util
import math

import torch


def diagonal(mu, log_var, eps):
    """The diagonal Gaussian: sample and KL."""
    std = torch.exp(0.5 * log_var)
    kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
    return mu + eps * std, kl


def kl_of(mu, log_var, rho):
    d = mu.shape[-1]
    spread = d * (log_var.exp() - 1 - log_var) - (d - 1) * torch.log1p(-rho.square())
    return 0.5 * (mu.square().sum(-1) + spread[:, 0])


def loop(mu, log_var, logit, eps):
    """The recurrence in Python, corrected: a list of columns, one cat."""
    rho = torch.tanh(logit)
    sigma, scale = torch.sqrt(1 - rho.square()), torch.exp(0.5 * log_var)
    columns = [eps[:, :1]]
    for j in range(1, mu.shape[-1]):
        columns.append(rho * columns[-1] + sigma * eps[:, j : j + 1])
    return mu + scale * torch.cat(columns, 1), kl_of(mu, log_var, rho)


def growing_cat(mu, log_var, logit, eps):
    """The same with the sources' way of building the sample: a cat for every column."""
    rho = torch.tanh(logit)
    sigma, scale = torch.sqrt(1 - rho.square()), torch.exp(0.5 * log_var)
    u = eps[:, :1]
    for j in range(1, mu.shape[-1]):
        u = torch.cat((u, rho * u[:, -1:] + sigma * eps[:, j : j + 1]), 1)
    return mu + scale * u, kl_of(mu, log_var, rho)


def lfiltered(scan):
    """AR(1) through a library's recursive filter, one coefficient per row."""

    def sample(mu, log_var, logit, eps):
        rho = torch.tanh(logit)
        driven = torch.cat([eps[:, :1], torch.sqrt(1 - rho.square()) * eps[:, 1:]], 1)
        return mu + torch.exp(0.5 * log_var) * scan(rho, driven), kl_of(mu, log_var, rho)

    return sample


def libraries():
    """Other implementations of the recurrence, where they are installed."""
    found = {}
    if importlib.util.find_spec("torchlpc"):
        from torchlpc import sample_wise_lpc

        found["torchlpc"] = lfiltered(
            lambda rho, x: sample_wise_lpc(x, -rho[:, :, None].expand(-1, x.shape[1], 1))
        )
    if importlib.util.find_spec("torchaudio"):
        from torchaudio.functional import lfilter

        def scan(rho, x):
            a = torch.cat([torch.ones_like(rho), -rho], 1)
            b = torch.cat([torch.ones_like(rho), torch.zeros_like(rho)], 1)
            return lfilter(x, a, b, clamp=False)

        found["torchaudio lfilter"] = lfiltered(scan)
    return found


def doubling(gates, tokens, reverse=False):
    """The recurrence in log₂ T steps over whole tensors: plain PyTorch, and no loop over time."""
    if reverse:
        gates = gates if gates.shape[-1] == 1 else gates.flip(-1)
        return doubling(gates, tokens.flip(-1)).flip(-1)
    a, x, step = gates, tokens, 1
    while step < tokens.shape[-1]:
        later = a if a.shape[-1] == 1 else a[..., step:]
        x = torch.cat([x[..., :step], x[..., step:] + later * x[..., :-step]], -1)
        # The gate over twice as many steps; on shorter sequences it has nothing to act on.
        a = a * a if a.shape[-1] == 1 else torch.cat([a[..., :step], later * a[..., :-step]], -1)
        step *= 2
    return x


def markov(mu, log_var, rho_logit, prior_rho_logit, eps):
    """A Gauss–Markov sample and its KL to an AR(1) prior in plain PyTorch, by doubling."""

    def before(x):
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)

    def correlation(logit):
        logit = logit.expand(mu.shape)
        return torch.cat([torch.zeros_like(logit[..., :1]), torch.tanh(logit[..., 1:])], -1)

    rho, prior = correlation(rho_logit), correlation(prior_rho_logit)
    std = torch.exp(0.5 * log_var).expand(mu.shape)
    free, prior_free = 1 - rho.square(), 1 - prior.square()
    z = mu + std * doubling(rho, torch.sqrt(free) * eps)
    ratio = std.square() * free / prior_free
    predicted, innovation = std * rho - before(std) * prior, mu - prior * before(mu)
    spread = (predicted.square() + innovation.square()) / prior_free
    return z, 0.5 * (ratio - 1 - torch.log(ratio) + spread).sum(-1)


def accelerated_scan():
    """The scan of the library accelerated-scan, where it is installed; else None."""
    if not importlib.util.find_spec("accelerated_scan"):
        return None
    from accelerated_scan.warp import scan

    return lambda gates, tokens: scan(gates[None].contiguous(), tokens[None].contiguous())[0]


class Panels(torch.autograd.Function):
    """A staircase by the library's dense products: the outputs in panels, upon what each reads.

    `panels` has (first output, end, inputs that all of them read, inputs that any reads, mask
    between these two) of each. The weight is 0 outside of the staircase, and so is its gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, panels):
        ctx.save_for_backward(x, weight)
        ctx.panels = panels
        y = x.new_empty(len(x), len(weight))
        for i, j, _, end, _ in panels:
            torch.addmm(bias[i:j], x[:, :end], weight[i:j, :end].t(), out=y[:, i:j])
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for i, j, begin, end, mask in ctx.panels:
            g = grad[:, i:j]
            d_x[:, :end].addmm_(g, weight[i:j, :end])
            torch.mm(g.t(), x[:, :end], out=d_weight[i:j, :end])
            d_weight[i:j, begin:end] *= mask
        return d_x, d_weight, grad.sum(0), None


def in_panels(prefix, count):
    """`masked_linear` by `count` panels of a weight that is 0 outside of the staircase.

    The values of `prefix` are looked at here, once, which on a GPU an op cannot do without waiting.
    """
    ends = prefix.tolist()
    panels = []
    for outputs in torch.arange(len(ends)).tensor_split(count):
        if len(outputs):
            i, j = int(outputs[0]), int(outputs[-1]) + 1
            begin, end = ends[i], ends[j - 1]
            inputs = torch.arange(begin, end, device=prefix.device)
            panels.append((i, j, begin, end, inputs < prefix[i:j, None]))
    return lambda x, weight, bias: (Panels.apply(x, weight, bias, panels),)


def sorted_network(layers):
    """Weights, biases and prefixes of masked layers, hidden units sorted by what they see."""
    weights, biases, prefixes = [], [], []
    order = torch.arange(layers[0].weight.shape[1])
    for i, layer in enumerate(layers):
        mask = layer.mask.bool()[:, order]
        seen = mask.sum(1)
        rows = torch.arange(len(seen)) if i == len(layers) - 1 else seen.argsort(stable=True)
        weights.append(layer.weight.detach()[rows][:, order].contiguous())
        biases.append(layer.bias.detach()[rows].contiguous())
        prefixes.append(seen[rows].int())
        staircase = torch.arange(mask.shape[1]) < prefixes[-1][:, None]
        assert torch.equal(mask[rows], staircase)
        order = rows
    return weights, biases, prefixes


def on(device, network):
    return tuple([x.to(device) for x in tensors] for tensors in network)


def zuko_network(d, width, device="cpu"):
    """The inverse of zuko's affine transform, its network as we take it, scale and bound."""
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform

    torch.manual_seed(0)
    flow = MaskedAutoregressiveTransform(d, hidden_features=(width, width))
    network = sorted_network([m for m in flow.hyper if hasattr(m, "mask")])
    flow = flow.to(device).requires_grad_(False)
    return lambda y: flow().inv.call_and_ladj(y), on(device, network), ("softclip", math.log(1e3))


def nflows_network(d, width, device="cpu"):
    """Likewise of nflows'."""
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    torch.manual_seed(0)
    flow = MaskedAffineAutoregressiveTransform(
        d, width, num_blocks=1, use_residual_blocks=False
    ).eval()
    net = flow.autoregressive_net
    weights, biases, prefixes = sorted_network(
        [net.initial_layer, *(block.linear for block in net.blocks), net.final_layer]
    )
    # Its heads are (scale, shift), ours (shift, scale).
    swapped = torch.arange(2 * d).view(d, 2).flip(1).flatten()
    weights[-1], biases[-1] = weights[-1][swapped], biases[-1][swapped]
    flow = flow.to(device).requires_grad_(False)
    return flow.inverse, on(device, (weights, biases, prefixes)), ("softplus", 1e-3)


def zuko_splines(d, hidden=(50, 50), transforms=3):
    """zuko's neural spline flow, and ours of the same weights."""
    from zuko.flows import NSF

    from rhovae_kernels.nn import MADE, Flow, SplineAutoregressive
    from rhovae_kernels.ops.rq_spline import SplineConvention

    torch.manual_seed(0)
    theirs, ours = NSF(d, transforms=transforms, hidden_features=hidden), []
    for transform in theirs.transform.transforms:
        layers = [m for m in transform.hyper if hasattr(m, "mask")]
        made = MADE.from_masks(
            [layer.weight.detach() for layer in layers],
            [layer.bias.detach() for layer in layers],
            [layer.mask for layer in layers],
        )
        ours.append(SplineAutoregressive(made, SplineConvention.zuko()))
    return theirs, Flow(d, ours)


class Empty(torch.autograd.Function):
    """What any op with gradients costs its host: tensors saved and made, and no work done."""

    @staticmethod
    def forward(ctx, mu, log_var, rho_logit, eps):
        ctx.save_for_backward(mu, log_var, rho_logit, eps)
        return torch.empty_like(mu), mu.new_empty(mu.shape[:-1], dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        mu, log_var, rho_logit, _ = ctx.saved_tensors
        return *map(torch.empty_like, (mu, log_var, rho_logit)), None
