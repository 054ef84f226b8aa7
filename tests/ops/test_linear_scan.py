"""linear_scan: the contract, and what is its own."""

import pytest
import torch
from contract import Contract, normal
from tolerance import assert_matches

import python_ref
import rhovae_kernels as rk


class TestLinearScan(Contract):
    op = "linear_scan"
    variants = ("per_row", "per_row_reverse", "per_step", "per_step_reverse")
    differentiable = (0, 1)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        gates = torch.tanh(
            normal(batch, 1 if "per_row" in variant else d, torch.float64, "cpu", 2 * seed)
        )
        tokens = normal(batch, d, dtype, device, 2 * seed + 1)
        return [gates.to(dtype).to(device), tokens, "reverse" in variant]

    def wrong_inputs(self):
        x = torch.ones(2, 3)
        yield "a shape", (torch.ones(2, 2), x), "gates"
        yield "leading dimensions", (torch.ones(3, 3), x), "gates"
        yield "a scalar", (torch.ones(1), torch.tensor(1.0)), "tokens"
        yield "integers", (x.long(), x.long()), "tokens"
        yield "two types", (x.double(), x), "gates"
        yield "two devices", (x.to("meta"), x), "gates"

    def test_gates_of_one_sum_and_gates_of_zero_copy(self, backend):
        x = normal((2,), 50, torch.float64, backend.device, 0)
        ones = torch.ones_like(x)
        torch.testing.assert_close(self.call(ones, x)[0], x.cumsum(-1))
        assert torch.equal(self.call(ones * 0, x)[0], x)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_non_finite_input_shows_exactly_where_it_does_in_the_specification(
        self, backend, reverse
    ):
        for gate_columns in (1, 40):
            for position in (0, 3, 17, 39):
                for value in (float("nan"), float("inf"), -float("inf")):
                    gates = torch.full((2, gate_columns), 0.9)
                    tokens = torch.ones(2, 40)
                    tokens[0, position] = value
                    expected = python_ref.linear_scan(gates, tokens, reverse).isfinite()
                    states = self.call(
                        gates.to(backend.device), tokens.to(backend.device), reverse
                    )[0]
                    assert torch.equal(states.isfinite().cpu(), expected)

    def test_a_million_steps_hold_their_digits(self, backend):
        if backend.slow:
            pytest.skip("too slow for a million steps")
        from scipy.signal import lfilter

        tokens = normal((1,), 1_000_003, torch.float32, backend.device, 0)
        for rho in (0.99, -0.9):
            gates = torch.full((1, 1), rho, device=backend.device)
            exact = lfilter([1.0], [1.0, -gates.double().item()], tokens[0].double().cpu().numpy())
            expected = torch.from_numpy(exact)[None]
            assert_matches(self.call(gates, tokens)[0].cpu(), expected, torch.float32, "per row")
            states = self.call(gates.expand_as(tokens), tokens)[0].cpu()
            assert_matches(states, expected, torch.float32, "per step")


def test_the_number_of_threads_does_not_change_a_bit():
    with rk.use_backend("cpu"):
        x = normal((3,), 100_000, torch.float32, "cpu", 0)
        gates = torch.full((3, 1), 0.97)
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(torch.ops.rhovae.linear_scan(gates, x))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)
