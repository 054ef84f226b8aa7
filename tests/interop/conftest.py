"""The peers, which tests of `fuse` need one by one, and what they share."""

import pytest
import torch


@pytest.fixture
def zuko():
    return pytest.importorskip("zuko", reason="zuko, a peer, is not installed")


@pytest.fixture
def nflows():
    pytest.importorskip("nflows", reason="nflows, a peer, is not installed")
    import nflows.distributions
    import nflows.flows
    import nflows.transforms

    return nflows


@pytest.fixture
def draw():
    """Standard normal numbers of a shape, the same for the same seed."""

    def numbers(*shape, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator)

    return numbers


@pytest.fixture
def assert_same_state():
    """Whether two state dicts are equal, names and bits."""

    def check(actual, expected):
        assert actual.keys() == expected.keys()
        for name, x in expected.items():
            assert torch.equal(actual[name], x), name

    return check
