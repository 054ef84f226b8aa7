"""linear_scan: the contract, and what is its own."""

import itertools

import pytest
import torch
from contract import Contract, normal
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref


class TestLinearScan(Contract):
    op = "linear_scan"
    variants = ("per_row", "per_row_reverse", "per_step", "per_step_reverse")
    differentiable = (0, 1)
    scans = True

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        gates = torch.tanh(
            normal(batch, 1 if "per_row" in variant else d, torch.float64, "cpu", 2 * seed)
        )
        tokens = normal(batch, d, dtype, device, 2 * seed + 1)
        return [gates.to(dtype).to(device), tokens, "reverse" in variant]

    def expected(self, *inputs, scan=python_ref.linear_scan):
        return (scan(*inputs),)

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


@pytest.mark.parametrize("initial", [None, torch.full((3, 1), 2.0)], ids=["from 0", "from 2"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(reverse, initial):
    with rk.use_backend("cpu"):
        x = normal((3,), 100_000, torch.float32, "cpu", 0)
        gates = torch.full((3, 1), 0.97)
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(torch.ops.rhovae.linear_scan(gates, x, reverse, initial))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)


class TestFromInitial(Contract):
    """The contract from a state of the caller's own."""

    op = "linear_scan"
    variants = TestLinearScan.variants
    differentiable = (0, 1, 3)
    scans = True

    def expected(self, *inputs, scan=python_ref.linear_scan):
        return (scan(*inputs),)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        initial = 2 * normal(batch, 1, torch.float64, "cpu", 2 * seed + 100)
        inputs = TestLinearScan().inputs(variant, batch, d, dtype, device, seed)
        return [*inputs, initial.to(dtype).to(device)]

    def wrong_inputs(self):
        x = torch.ones(2, 3)
        yield "as long as tokens", (x, x, False, x), "initial"
        yield "leading dimensions", (x, x, False, torch.ones(3, 1)), "initial"
        yield "no column", (x, x, False, torch.ones(2)), "initial"
        yield "two types", (x, x, False, torch.ones(2, 1).double()), "initial"
        yield "integers", (x, x, False, torch.ones(2, 1).long()), "initial"
        yield "two devices", (x, x, False, torch.ones(2, 1, device="meta")), "initial"

    def test_gates_of_one_add_the_initial_state_to_each_sum(self, backend):
        x = normal((2,), 50, torch.float64, backend.device, 0)
        initial = torch.tensor([[3.0], [-7.0]], dtype=torch.float64, device=backend.device)
        for gates in (torch.ones_like(x), torch.ones_like(initial)):
            states = self.call(gates, x, False, initial)[0]
            torch.testing.assert_close(states, initial + x.cumsum(1))

    def test_an_initial_state_of_zero_is_none(self, backend):
        for _, inputs in self.each_variant((3,), 2100, torch.float32, backend.device):
            *given, initial = inputs
            assert torch.equal(self.call(*given, 0 * initial)[0], self.call(*given)[0])

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("columns", [1, 601], ids=["per row", "per step"])
    def test_a_stream_in_chunks_is_one_scan(self, backend, reverse, columns):
        gates = torch.tanh(normal((3,), columns, torch.float64, backend.device, 0))
        tokens = normal((3,), 601, torch.float64, backend.device, 1)
        sizes = [1, 16, 0, 83, 501]
        chunks = list(tokens.split(sizes, 1))
        of_chunks = [gates] * 5 if columns == 1 else list(gates.split(sizes, 1))
        order = range(5)[::-1] if reverse else range(5)
        initial, states = None, [None] * 5
        for i in order:
            states[i] = self.call(of_chunks[i], chunks[i], reverse, initial)[0]
            if sizes[i]:
                initial = states[i][:, :1] if reverse else states[i][:, -1:]
        whole = self.call(gates, tokens, reverse)[0]
        torch.testing.assert_close(torch.cat(states, 1), whole, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("per_row", [False, True])
    def test_without_steps_there_are_no_states_and_the_gradients_are_zero(
        self, backend, reverse, per_row
    ):
        tokens = torch.zeros(3, 0, device=backend.device, requires_grad=True)
        gates = tokens.new_full((3, 1 if per_row else 0), float("nan")).requires_grad_()
        initial = tokens.new_full((3, 1), float("nan")).requires_grad_()
        states = self.call(gates, tokens, reverse, initial)[0]
        assert states.shape == (3, 0)
        gradients = torch.autograd.grad(states.sum(), (gates, tokens, initial))
        for g, x in zip(gradients, (gates, tokens, initial), strict=True):
            assert torch.equal(g, torch.zeros_like(x))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_non_finite_initial_state_shows_exactly_where_it_does_in_the_specification(
        self, backend, reverse
    ):
        tokens = torch.ones(2, 40)
        gates = torch.full((2, 40), 0.9)
        gates[:, 20] = 0
        for value in (float("nan"), float("inf"), -float("inf")):
            initial = torch.tensor([[value], [1.0]])
            for of_steps in (gates, gates[:, :1]):
                expected = python_ref.linear_scan(of_steps, tokens, reverse, initial).isfinite()
                a, b, x_0 = (x.to(backend.device) for x in (of_steps, tokens, initial))
                states = self.call(a, b, reverse, x_0)[0]
                assert torch.equal(states.isfinite().cpu(), expected)

    def test_sequences_packed_by_gates_of_zero_are_those_scanned_alone(self, backend):
        lengths = [1, 40, 3, 517]
        tokens = normal((2,), sum(lengths), torch.float32, backend.device, 0)
        gates = torch.tanh(normal((2,), sum(lengths), torch.float32, backend.device, 1))
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        gates[:, starts.to(gates.device)] = 0
        initial = torch.full((2, 1), 1e6, device=backend.device)
        packed = self.call(gates, tokens, False, initial)[0]
        pieces = (x.split(lengths, 1) for x in (gates, tokens, packed))
        for a, b, states in zip(*pieces, strict=True):
            torch.testing.assert_close(states, self.call(a, b, False)[0], rtol=1e-6, atol=1e-6)

    def test_each_set_of_gradients_asked_for_is_the_whole_ones(self, backend):
        for variant, inputs in self.each_variant((3,), 19, torch.float32, backend.device):
            gates, tokens, reverse, initial = inputs
            states = self.call(*inputs)[0]
            backward = torch.ops.rhovae.linear_scan_backward
            for given, again in itertools.product((initial, None), (False, True)):
                kept = tokens if again else states
                args = (torch.ones_like(tokens), gates, kept, given, reverse, again)
                full = backward(*args, [True] * 3)
                for bits in range(8):
                    needs = [bool(bits >> i & 1) for i in range(3)]
                    for g, e, need in zip(backward(*args, needs), full, needs, strict=True):
                        assert torch.equal(g, e) if need else g.shape == (0,), (variant, needs)


# The front door's dimension.


@pytest.mark.parametrize("dim", range(-3, 3))
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("from_initial", [False, True])
def test_any_dimension_may_be_that_of_the_steps(dim, reverse, per_row, from_initial):
    def one_along(shape):
        shape = list(shape)
        shape[dim] = 1
        return shape

    shape = [4, 5, 6]
    leaves = [
        torch.tanh(normal(one_along(shape) if per_row else shape, 1, torch.float64, "cpu", 0)),
        normal(shape, 1, torch.float64, "cpu", 1),
        normal(one_along(shape), 1, torch.float64, "cpu", 2) if from_initial else None,
    ]
    leaves = [None if x is None else x[..., 0].requires_grad_() for x in leaves]
    gates, tokens, initial = leaves
    states = rk.ops.linear_scan(gates, tokens, reverse, initial, dim=dim)
    a, b, x_0 = (None if x is None else x.movedim(dim, -1) for x in leaves)
    expected = python_ref.linear_scan(a, b, reverse, x_0).movedim(-1, dim)
    torch.testing.assert_close(states, expected)
    given = [x for x in leaves if x is not None]
    up = torch.arange(120, dtype=torch.float64).view(shape).sin()
    actual = torch.autograd.grad(states, given, up)
    torch.testing.assert_close(actual, torch.autograd.grad(expected, given, up))


@pytest.mark.parametrize(
    "arguments,dim,said",
    [
        ((2, 3), 2, "dim is 2; it must be an int from -2 to 1"),
        ((2, 3), -3, "dim is -3; it must be an int from -2 to 1"),
        ((2, 3), 0.0, "dim is 0.0; it must be an int from -2 to 1"),
        ((2, 2), 0, r"gates is of shape \(2, 2\); it must be of shape \(2, 3\) or \(1, 3\)"),
        ((3,), 0, r"gates is of shape \(3,\); it must be of shape \(2, 3\) or \(1, 3\)"),
        ((), 0, r"gates is of shape \(\); it must be of shape"),
    ],
    ids=str,
)
def test_a_wrong_dimension_is_named_and_shapes_are_those_that_were_given(arguments, dim, said):
    with pytest.raises(ValueError, match=f"rhovae::linear_scan: {said}"):
        rk.ops.linear_scan(torch.ones(arguments), torch.ones(2, 3), dim=dim)


def test_along_another_dimension_initial_is_refused_by_name():
    x = torch.ones(2, 3)
    said = r"initial is of shape \(2, 1\); it must be of shape \(1, 3\), to go with tokens"
    with pytest.raises(ValueError, match=said):
        rk.ops.linear_scan(x, x, initial=x[:, :1], dim=0)
    with pytest.raises(ValueError, match="tokens is a scalar"):
        rk.ops.linear_scan(x, x.sum(), dim=0)
    with pytest.raises(ValueError, match="tokens is None; it must be of type Tensor"):
        rk.ops.linear_scan(x, None, dim=0)
    with pytest.raises(ValueError, match=r"initial is 1\.0; it must be of type Optional"):
        rk.ops.linear_scan(x, x, initial=1.0, dim=0)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_front_door_compiles_exports_and_batches_with_an_initial_state(dim):
    gates, tokens = torch.full((4, 5), 0.5), normal((4,), 5, torch.float32, "cpu", 0)
    initial = tokens.narrow(dim, 0, 1)

    class Module(torch.nn.Module):
        def forward(self, gates, tokens, initial):
            return rk.ops.linear_scan(gates, tokens, initial=initial, dim=dim)

    expected = Module()(gates, tokens, initial)
    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(gates, tokens, initial), expected)
    exported = torch.export.export(Module(), (gates, tokens, initial))
    assert torch.equal(exported.module()(gates, tokens, initial), expected)
    stacked = (torch.stack([x, 2 * x]) for x in (tokens, initial))
    batched = torch.vmap(Module(), (None, 0, 0))(gates, *stacked)
    torch.testing.assert_close(batched, torch.stack([expected, 2 * expected]))
