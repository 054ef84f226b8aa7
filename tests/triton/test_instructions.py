"""What the Triton kernels' machine code must be, at the shapes that they are measured at.

Bytes are these kernels' limit, as long as an element takes few instructions and loads do not wait
for one another: both can be read where there is no GPU.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
import machine_code  # noqa: E402
from machine_code import compiled, local_memory  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from rhovae_kernels.triton.affine_coupling import _coupling, _coupling_backward  # noqa: E402
from rhovae_kernels.triton.ar1 import (  # noqa: E402
    _log_prob,
    _log_prob_backward,
    _noise_gradient,
    _reparam,
    _reparam_backward,
)
from rhovae_kernels.triton.iaf_gate import _gate, _gate_backward  # noqa: E402
from rhovae_kernels.triton.linear_scan import _backward_of_tokens, _scan  # noqa: E402
from rhovae_kernels.triton.runtime import LOOPED, Configuration, configuration  # noqa: E402

pytestmark = pytest.mark.gate

REGISTERS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "registers.md"
COUNTED_WITH = re.search(r"Triton (\S+\d)", REGISTERS.read_text("utf-8"))[1]

PER_ROW = {"PER_ELEMENT": False, "PER_STEP": False}
PER_ELEMENT = {"PER_ELEMENT": True, "PER_STEP": False}
WHOLE: dict[str, str | None] = {"ends": None}
READ = WHOLE | {"rng_state": None}
DRAWN = WHOLE | {"rng_state": "i64", "eps": None}
FORWARD = WHOLE | dict.fromkeys(("states", "initial", "d_gates", "d_initial"))
SCAN = dict.fromkeys(("REVERSE", "GATE_PER_ROW", "ADJOINT", "CARRIED"), False)
BACK = {"REVERSE": True, "ADJOINT": True}
FORTH = {"REVERSE": False, "GATE_PER_ROW": False}
FROM_ZERO: dict[str, str | None] = WHOLE | dict.fromkeys(("initial", "d_initial"))
OF_TOKENS: dict[str, str | None] = dict.fromkeys(
    ("initial", "d_initial", "state_ends", "adjoint_ends")
)
TANH = {"INVERSE": False, "BOUNDED": True}
WHOLE_ROWS = {"CARRIED": False}


class Gate(NamedTuple):
    """What one kernel must hold, compiled for sm_90.

    `elsewhere` is the bound on the instructions an element under another version of Triton than the
    one they were counted with, of which `at_most` is what was reached, rounded up by 3% or less.
    """

    configuration: Configuration
    at_most: float
    elsewhere: float
    loads: int
    stores: int
    in_flight: int


def reparam(pointers, flags):
    return configuration(_reparam, "fp32", 1024, pointers, flags | WHOLE_ROWS)


def reparam_backward(pointers, per_element=False):
    flags = {"PER_ELEMENT": per_element, "SCAN": True}
    return configuration(_reparam_backward, "fp32", 1024, pointers, flags | WHOLE_ROWS)


def of_tokens(columns):
    return configuration(
        _backward_of_tokens, "bf16", columns, OF_TOKENS, FORTH, tiles=True, widest=columns
    )


GATES = {
    "ar1_reparam": Gate(reparam(READ, PER_ROW), 20, 36, 16, 8, 8),
    "ar1_reparam-log_var_of_elements": Gate(reparam(READ, PER_ELEMENT), 53.7, 60, 24, 8, 8),
    "ar1_reparam_rng": Gate(reparam(DRAWN, PER_ROW), 58.7, 75, 8, 8, 8),
    "ar1_log_prob": Gate(configuration(_log_prob, "fp32", 1024, {}, PER_ROW), 19.4, 30, 16, 0, 10),
    "iaf_gate-float32": Gate(configuration(_gate, "fp32", 512, {}, {}), 35.9, 40, 24, 8, 2),
    "iaf_gate-bfloat16": Gate(
        configuration(_gate, "bf16", 512, {"log_det": "fp32"}, {}), 38.9, 40, 12, 4, 3
    ),
    "affine_coupling-tanh": Gate(
        configuration(_coupling, "fp32", 512, {"mask": "u8"}, TANH), 39.7, 45, 24, 8, 2
    ),
    "ar1_reparam-backward": Gate(reparam_backward(READ), 40.1, 46, 24, 8, 12),
    "ar1_reparam-backward-log_var_of_elements": Gate(
        reparam_backward(READ, True), 74, 84, 32, 16, 3
    ),
    "ar1_reparam-gradient_of_eps": Gate(
        configuration(_noise_gradient, "fp32", 1024, WHOLE, {"PER_ELEMENT": True} | WHOLE_ROWS),
        *(38.4, 46, 16, 8, 6),
    ),
    "ar1_reparam_rng-backward": Gate(reparam_backward(DRAWN), 78.7, 90, 16, 8, 9),
    "ar1_log_prob-backward": Gate(
        configuration(_log_prob_backward, "fp32", 1024, {}, PER_ROW), 38.3, 46, 16, 16, 2
    ),
    "iaf_gate-backward-float32": Gate(
        configuration(_gate_backward, "fp32", 512, {}, {}), 29.4, 34, 32, 24, 11
    ),
    "iaf_gate-backward-bfloat16": Gate(
        configuration(_gate_backward, "bf16", 512, {"grad_log_det": "fp32"}, {}),
        34.7,
        40,
        16,
        12,
        2,
    ),
    "affine_coupling-backward-tanh": Gate(
        configuration(_coupling_backward, "fp32", 512, {"mask": "u8"}, TANH), 54, 62, 6, 6, 2
    ),
    "linear_scan-looped": Gate(
        configuration(_scan, "fp32", LOOPED, FORWARD, SCAN), 21.5, 22, 16, 8, 6
    ),
    # Each gate is loaded twice, as that of a step and as that of the step before.
    "linear_scan-backward": Gate(
        configuration(_scan, "fp32", 1024, FROM_ZERO, SCAN | BACK), 43.7, 48, 8, 16, 6
    ),
    # As above, but that the gate of the step before is loaded element by element.
    "linear_scan-backward-looped": Gate(
        configuration(_scan, "fp32", LOOPED, FROM_ZERO, SCAN | BACK), 85, 96, 2, 4, 2
    ),
    "linear_scan-backward-bfloat16": Gate(
        configuration(_backward_of_tokens, "bf16", 1024, OF_TOKENS, FORTH, True), 47.8, 52, 12, 8, 3
    ),
    "linear_scan-backward-bfloat16-2048": Gate(of_tokens(2048), 50.3, 56, 12, 8, 12),
    "linear_scan-backward-bfloat16-8192": Gate(of_tokens(8192), 55.6, 62, 12, 8, 7),
    "linear_scan-backward-bfloat16-reverse": Gate(
        configuration(
            _backward_of_tokens, "bf16", 1024, OF_TOKENS, FORTH | {"REVERSE": True}, True
        ),
        *(46.8, 52, 12, 8, 3),
    ),
}


@pytest.fixture(params=GATES)
def gate(request) -> Gate:
    return GATES[request.param]


def test_an_element_takes_few_instructions_and_loads_do_not_wait_for_stores(gate, tmp_path):
    lane, an_element = machine_code.path_of_kernel(gate.configuration, 90, tmp_path / "kernel")
    same = triton.__version__ == COUNTED_WITH
    assert an_element <= (gate.at_most if same else gate.elsewhere)
    assert (len(lane.loads), len(lane.stores)) == (gate.loads, gate.stores)
    assert lane.loads_precede_stores
    assert not same or lane.in_flight >= gate.in_flight


@pytest.mark.parametrize("cc", [80, 89, 90, 100, 120])
def test_it_keeps_all_in_registers(gate, cc, tmp_path):
    cubin = compiled(gate.configuration, GPUTarget("cuda", cc, 32)).asm["cubin"]
    assert local_memory(cubin, tmp_path / "kernel") == 0
    assert not re.search(r"\b(?:LDL|STL)\b", machine_code.dumped("sass", cubin, tmp_path / "sass"))
