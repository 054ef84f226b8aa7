"""Modules and inputs that the tests of networks and flows share."""

import pytest
import torch


@pytest.fixture
def trained():
    """Leaves a module as training does: no parameter at its start, scales spread about."""

    def leave(module, seed=0, scale=0.3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in module.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p += (scale * noise / max(1, p.shape[-1]) ** 0.5).to(p)
        return module

    return leave


@pytest.fixture
def draw():
    """Draws standard normal numbers, the same at every call of the same arguments."""

    def normal(*shape, seed=1, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal
