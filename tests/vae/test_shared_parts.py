"""A part belongs to one VAE."""

import copy
import pickle

import pytest
import torch
from torch import nn

import rhovae_kernels as rk


def parts_of() -> dict[str, nn.Module]:
    return {
        "encoder": rk.nets.MLP((2,), hidden=(4,)),
        "posterior": rk.posteriors.AR1(2),
        "prior": rk.priors.RealNVP(2, 2, (4,)),
        "decoder": rk.decoders.Gaussian(nn.Linear(2, 2)),
        "objective": rk.objectives.WarmUp(rk.objectives.Factor(2.0, hidden=(4,)), steps=5),
    }


every_part = pytest.mark.parametrize("name", list(parts_of()))


@every_part
def test_a_part_of_another_vae_is_refused_and_left_as_it_is(name):
    first = rk.VAE(**parts_of())
    part = getattr(first, name)
    before = {key: x.clone() for key, x in part.state_dict().items()}
    modules = list(part.modules())
    with pytest.raises(ValueError, match=f"{name} is a {type(part).__name__} that is part of ano"):
        rk.VAE(**{**parts_of(), name: part})
    assert all(map(torch.equal, part.state_dict().values(), before.values()))
    assert all(now is then for now, then in zip(part.modules(), modules, strict=True))


HELD = {
    "encoder": lambda vae: vae.encoder.layers,
    "decoder": lambda vae: rk.decoders.Bernoulli(vae.decoder.net),
    "objective": lambda vae: rk.objectives.FreeBits(vae.objective.objective, 1.0),
}


@pytest.mark.parametrize("name", HELD)
def test_what_a_part_of_another_vae_was_made_of_is_refused(name):
    first = rk.VAE(**parts_of())
    other = {**parts_of(), name: HELD[name](first)}
    with pytest.raises(ValueError, match=f"{name} (is|holds) a .* that is part of another VAE"):
        rk.VAE(**other, input_shape=(2,))


@every_part
def test_a_copy_of_a_part_is_a_part_of_its_own(name):
    first = rk.VAE(**parts_of())
    rk.VAE(**{**parts_of(), name: copy.deepcopy(getattr(first, name))})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
@every_part
def test_the_parts_of_a_copied_vae_are_its_own(name, copied):
    again = copied(rk.VAE(**parts_of()))
    with pytest.raises(ValueError, match=f"{name} is a .* that is part of another VAE"):
        rk.VAE(**{**parts_of(), name: getattr(again, name)})


@every_part
def test_the_parts_of_a_vae_that_is_gone_are_free(name):
    part = getattr(rk.VAE(**parts_of()), name)
    assert getattr(rk.VAE(**{**parts_of(), name: part}), name) is part


@every_part
def test_parts_that_were_refused_are_free(name):
    given = parts_of()
    with pytest.raises(ValueError, match="must agree"):
        rk.VAE(**{**given, "prior": rk.priors.StandardNormal(3)})
    rk.VAE(**{**parts_of(), name: given[name]})


def test_a_part_that_was_replaced_is_free():
    vae = rk.VAE(**parts_of())
    replaced, vae.decoder = vae.decoder, copy.deepcopy(vae.decoder)
    rk.VAE(**{**parts_of(), "decoder": replaced})


def test_networks_of_ones_own_may_share_what_they_hold():
    backbone = nn.Linear(2, 4)
    for _ in range(2):
        encoder = nn.Sequential(backbone, nn.Linear(4, 3))
        vae = rk.VAE(**{**parts_of(), "encoder": encoder}, input_shape=(2,))
        assert vae.encoder[0] is backbone
