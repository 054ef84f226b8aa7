"""Every op on a GPU: built, tested, verified, timed; into one JSON and one log.

    python benchmarks/gpu_suite.py OUT [--ops ar1_reparam,linear_scan] [--minutes 9] [--no-tests]
        [--resume] [--wheels FOLDER] [--dry-run] [--rehearsal]

It needs CUDA's compiler, torch ≥ 2.11, triton ≥ 3.6 and pytest, and no network. In this order,
while time is left: the extension is built for the card that is there; each op is called once on a
small shape and verified, in a process of its own, so that a crash ends nothing else; the bandwidth
of a copy and the rates of matrix products are measured; the largest case of each entry of
`gpu_cases.py` is verified against float64, then timed by device events beside what else does that
work, in turns: launched one by one ("eager"), and replayed from a CUDA graph ("graph"); the ops'
tests run; then the other cases. What time does not suffice for is named, and `--resume` goes on
with it: on the same machine, from what OUT holds. `--no-tests` leaves the tests out, where they
have run before. `--wheels` is a folder of wheels of the competitors, which are unpacked beside the
result. `--dry-run` goes the same way on the CPU with tiny shapes: its times
are no figures. `--rehearsal` ends after the smoke tests, which launch every case at its own shape
and verify nothing: for a stub of CUDA's runtime, on which kernels do not run (`make rehearsal`).
The last 30 lines say it all in short.

A row of the JSON is one backend of ours beside one competitor, or none. ratio: competitor_ms / ms.
percent_of_limit: of ms, the least time that the op's bytes and FLOPs (`rhovae_kernels/ops/cost.py`)
take at the rates of the copy and of the matrix product (TF32 for float32). In the mode "launch" ms
is the host's time for a call.

Exit status: 0, all ran and is right; 1, something failed; 2, it cannot run so; 3, time ran out.
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
import torch._functorch.config

HERE = Path(__file__).resolve().parent
PROGRAM = [sys.executable, str(HERE / "gpu_suite.py")]
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]
import gpu_cases  # noqa: E402
import harness  # noqa: E402
from gpu_cases import Entry, Way, Work  # noqa: E402

# Of the largest value: float32 sums; and one rounding of bfloat16, 2⁻⁹, with room for its sums.
BOUND = {torch.float32: 1e-4, torch.bfloat16: 2.0**-7}
# A competitor that computes in bfloat16 throughout rounds at each of its steps.
COMPETITORS_BOUND = {torch.float32: 1e-3, torch.bfloat16: 2.0**-5}
# TF32 keeps 10 bits of each factor and cuts the rest off.
TF32_BOUND = 2.0**-9
# Elements of a result that are verified, where it has more.
VERIFIED_ELEMENTS = 2**22
ROUNDS, BUDGET = 21, 0.2
# The share of the time that is left which goes to the tests, and to the smoke tests, at most.
TESTS_SHARE, SMOKE_SHARE = 0.4, 0.3
SMOKE_PROCESSES = 7
# The shape of a smoke test; a tiny one, of a rehearsal.
SMALL, TINY = (64, 128), (4, 8)
SUMMARY_LINES = 30


def by_events(call: Callable[[], object]) -> float:
    """Seconds of device time from one call to the next, over enough of them to fill 1 ms."""

    def timed(calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / calls

    return timed(min(50, max(1, int(1e-3 / max(timed(1), 1e-6)))))


def by_launches(call: Callable[[], object]) -> float:
    """Seconds of the host's time a call, the device left to catch up."""
    calls = 50
    torch.cuda.synchronize()
    seconds = harness.wall_clock(lambda: [call() for _ in range(calls)]) / calls
    torch.cuda.synchronize()
    return seconds


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sentence(error: Exception) -> str:
    """The first line of what an exception says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Case(NamedTuple):
    """An entry at one shape and type.

    `ours` maps names of ours to backends; `ways` and `verified`, names to what runs and is right.
    """

    entry: Entry
    shape: tuple[int, int]
    dtype: torch.dtype
    work: Work
    ours: dict[str, str]
    ways: dict[str, Way]
    verified: dict[str, bool]
    upstream: tuple[torch.Tensor, ...]

    @property
    def label(self) -> str:
        rows, columns = self.shape
        return f"{self.entry.op} {rows}×{columns} {type_name(self.dtype)}"

    def has(self, row: dict) -> bool:
        of_case = (self.entry.op, list(self.shape), type_name(self.dtype))
        of_row = (row["op"], row["shape"], row["dtype"])
        return of_row == of_case and row["mode"].split()[0] in self.entry.modes

    def bound(self, name: str) -> float:
        if self.entry.tf32 and self.dtype == torch.float32:
            return TF32_BOUND
        return (BOUND if name in self.ours else COMPETITORS_BOUND)[self.dtype]


class Suite:
    """One run: what it may spend, what it found, and where that is written."""

    def __init__(
        self,
        out: Path,
        ops: list[str] | None,
        minutes: float,
        dry_run: bool,
        tests: bool = True,
        wheels: Path | None = None,
        rehearsal: bool = False,
        resume: bool = False,
    ):
        self.out, self.ops, self.dry_run, self.tested = out, ops, dry_run, tests
        self.wheels, self.rehearsal = wheels, rehearsal
        self.device = "cpu" if dry_run else "cuda"
        self.end = time.monotonic() + 60 * minutes
        out.mkdir(parents=True, exist_ok=True)
        mode = "a" if resume else "w"
        self.log = (out / "gpu_suite.log").open(mode, encoding="utf-8", buffering=1)
        self.began = time.monotonic()
        self.limits: dict[str, float] = {}
        self.rows: list[dict] = []
        self.failures: list[dict[str, str]] = []
        self.not_run: list[str] = []
        self.not_timed: list[str] = []
        self.done: list[str] = []
        self.current = ""
        self.result: dict = {"dry_run": dry_run, "minutes": 0.0, "machine": {}}
        # No graph can be captured in this process any more.
        self.capture_failed = False
        if resume:
            self.resume()

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.log.write(text + "\n")

    def failed(self, what: str, error: str) -> None:
        self.failures.append({"what": what, "error": error, "step": self.current})
        self.say(f"FAILED: {what}: {error}")

    def step(self, what: str, action: Callable[[], object]) -> None:
        """Do it if there is time, outlive its failing, and write down what came of it."""
        if what in self.done:
            return
        if self.left() <= 0:
            self.not_run.append(what)
            self.say(f"not run, out of time: {what}")
        else:
            began, not_run, self.current = time.monotonic(), len(self.not_run), what
            self.say(f"{what} …")
            try:
                action()
                if len(self.not_run) == not_run:
                    self.done.append(what)
            except ModuleNotFoundError as error:
                self.not_run.append(f"{what}: {sentence(error)}")
                self.say(f"not run: {self.not_run[-1]}")
            except Exception as error:
                self.log.write(traceback.format_exc())
                self.failed(what, sentence(error))
            self.say(f"{what}: {time.monotonic() - began:.1f} s")
        self.write()

    def write(self) -> None:
        """All that is known so far, whole or not at all: a run that is killed loses nothing."""
        result = self.result | {
            "minutes": (time.monotonic() - self.began) / 60,
            "limits": self.limits,
            "failures": self.failures,
            "not_run": self.not_run,
            "not_timed": self.not_timed,
            "done": self.done,
        }
        head = json.dumps(result, indent=1, ensure_ascii=False).removesuffix("\n}")
        rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in self.rows)
        part = self.out / "gpu_suite.json.part"
        part.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
        os.replace(part, self.out / "gpu_suite.json")

    def resume(self) -> None:
        """What an earlier run wrote; its steps that are not done are taken again."""
        result = json.loads((self.out / "gpu_suite.json").read_text(encoding="utf-8"))
        if result["dry_run"] != self.dry_run:
            raise ValueError(f"{self.out} holds {'a' if result['dry_run'] else 'no'} dry run")
        for name in ("limits", "rows", "not_timed", "done"):
            setattr(self, name, result.pop(name))
        self.failures = [f for f in result.pop("failures") if f["step"] in self.done]
        del result["not_run"]
        self.began -= 60 * result["minutes"]
        self.result = result

    def command(
        self, what: str, command: list[str], seconds: float, **environment: str
    ) -> tuple[bool, str]:
        """Run a program for so long at most: whether it went well, and its output, also logged."""
        status, output = self.program(what, command, seconds, **environment)
        if status:
            last = (output.strip().splitlines() or [""])[-1]
            self.failed(what, f"exit status {status}: {last}")
        return status == 0, output

    def program(
        self, what: str, command: list[str], seconds: float, **environment: str
    ) -> tuple[int | None, str]:
        """Its exit status, None where it was stopped for time, and its output, also logged."""
        # A session of its own: whatever the program started is stopped with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        seconds = max(1.0, seconds)
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            self.not_run.append(f"{what}: stopped after {seconds:.0f} s")
            self.say(f"out of time: {self.not_run[-1]}")
            process.returncode = None
        self.log.write(output)
        return process.returncode, output

    # The steps.

    def build(self) -> None:
        """The extension, for this card."""
        if self.dry_run:
            self.result["build"] = "left out: a rehearsal builds nothing"
            return
        major, minor = torch.cuda.get_device_capability()
        done, _ = self.command(
            "build",
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            self.left(),
            RHOVAE_CUDA="1",
            RHOVAE_CUDA_ARCHITECTURES=f"{major}{minor}",
        )
        self.result["build"] = f"{'' if done else 'not done '}for sm_{major}{minor}"

    def unpack(self, wheels: Path) -> None:
        """The competitors, into a folder beside the result that is searched last."""
        files = sorted(map(str, wheels.glob("*.whl")))
        if not files:
            raise FileNotFoundError(f"{wheels} holds no wheel")
        target = self.out / "peers"
        options = ["--quiet", "--no-index", "--no-deps", "--target", str(target)]
        self.command(
            "wheels", [sys.executable, "-m", "pip", "install", *options, *files], self.left()
        )
        sys.path.append(str(target))

    def smoke(self, entries: list[Entry]) -> None:
        """A verified call of each entry on a small shape, in a process that may crash.

        In a rehearsal, a call of each case.
        """
        end = time.monotonic() + SMOKE_SHARE * self.left()
        numbers = [str(gpu_cases.ENTRIES.index(entry)) for entry in entries]
        # Most of it is compiling: as many side by side as there are cores for.
        count = max(1, min(SMOKE_PROCESSES, (os.cpu_count() or 1) // 2))
        with ThreadPoolExecutor(count) as pool:
            shares = (numbers[i::count] for i in range(count))
            list(pool.map(self.smoke_share, range(count), shares, [end] * count))

    def smoke_share(self, i: int, waiting: list[str], end: float) -> None:
        """Those of these entries, in one process after the other."""
        while waiting:
            command = [*PROGRAM, str(self.out / f"smoke{i}"), "--smoke", ",".join(waiting)]
            command += ["--dry-run"] if self.dry_run else []
            command += ["--rehearsal"] if self.rehearsal else []
            status, output = self.program("smoke test", command, end - time.monotonic())
            wrong = r"^smoke \d+ (\w+): (?!(?:right|launched)$)(.*)$"
            for op, error in re.findall(wrong, output, re.MULTILINE):
                self.failed(f"smoke test of {op}", error)
            if status in (0, 1, None):
                return
            begun = re.findall(r"^smoke (\d+) (\w+)", output, re.MULTILINE)
            if not begun:
                self.failed("smoke test", f"exit status {status} before the first op")
                return
            # The next process goes on after the one that ended this.
            last, op = begun[-1]
            self.failed(f"smoke test of {op}", f"the process ended with status {status}")
            waiting = waiting[waiting.index(last) + 1 :]

    def tests(self, files: list[str]) -> None:
        """The contract of each op, on this card."""
        if importlib.util.find_spec("hypothesis") is None:
            self.say("hypothesis is not installed: the tests of any shape at all are skipped")
        wanted = "reference-cpu and fake" if self.dry_run else "cuda-cuda or triton-cuda"
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist") is not None and not self.dry_run:
            command += ["-n", "8"]
        share = TESTS_SHARE * self.left()
        _, output = self.command("tests", [*command, "-k", wanted, *files], share)
        said = re.findall(r"^.*\d+ (?:passed|failed|error).*$", output, re.MULTILINE)
        self.result["tests"] = said[-1].strip("= ") if said else "no result"
        self.say(f"tests: {self.result['tests']}")

    def measure_limits(self) -> None:
        """What the card does at best: bytes of a copy and FLOPs of matrix products a second."""
        n, side = (2**10, 32) if self.dry_run else (2**28, 8192)
        source = torch.empty(n, device=self.device)
        target = torch.empty_like(source)
        variants: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
        for dtype in BOUND:
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            variants[type_name(dtype)] = partial(torch.mm, a, b)
        with tf32_allowed(True):
            ms = self.timed(variants)
        self.limits["copied_bytes_per_second"] = 2 * source.nbytes / (1e-3 * ms.pop("copy"))
        for name, taken in ms.items():
            self.limits[f"{name}_flops_per_second"] = 2 * side**3 / (1e-3 * taken)
        for name, value in self.limits.items():
            self.say(f"{name}: {value:.4g}")

    def timed(self, variants, clock=None, within=lambda name: nullcontext()) -> dict[str, float]:
        """Median milliseconds of each variant, taken in turns; in a dry run those of one call."""
        if not self.dry_run:
            return harness.interleaved(variants, clock or by_events, ROUNDS, BUDGET, within)
        times = {}
        for name, call in variants.items():
            with within(name):
                times[name] = 1e3 * harness.wall_clock(call)
        return times

    def fitting(self, entry: Entry, shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        """The shape, or so many of its rows as the card's memory holds."""
        rows, columns = shape
        if self.dry_run:
            return shape
        free, _ = torch.cuda.mem_get_info()
        fitting = min(rows, int(0.9 * free / (entry.tensors * columns * dtype.itemsize)))
        if fitting < rows:
            self.say(f"{entry.op}: {fitting} rows of {columns} in place of {rows}: memory")
        return fitting, columns

    def measure(self, entry: Entry, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Verify and time one case."""
        with tf32_allowed(entry.tf32):
            case = self.verified(entry, self.fitting(entry, shape, dtype), dtype)
            # What an earlier run had time for.
            self.rows = [row for row in self.rows if not case.has(row)]
            for direction in entry.directions:
                for mode in entry.modes:
                    if self.left() <= 0:
                        self.not_run.append(f"{case.label} {direction} {mode}")
                    else:
                        self.compare(case, direction, mode)

    def case(self, entry: Entry, shape: tuple[int, int], dtype: torch.dtype) -> Case:
        """The case with its work made, and those backends of ours that can do it."""
        import rhovae_kernels as rk
        from rhovae_kernels import backends
        from rhovae_kernels.ops.op import REGISTRY

        gc.collect()
        if not self.dry_run:
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        work = entry.make(shape, dtype, self.device)
        case = Case(entry, shape, dtype, work, {}, {}, {}, ())
        for backend in ("cpu", "triton") if self.dry_run else ("cuda", "triton"):
            reason = backends.missing(backend, self.device)
            for op in entry.uses or (entry.op,):
                if reason is None and op in REGISTRY:
                    reason = backends.unwritten(backend, REGISTRY[op], entry.form)
            if reason is None:
                case.ours[f"rhovae {backend}"] = backend
            else:
                self.left_untimed(f"{case.label}, {backend}", reason)
        if not case.ours:
            raise RuntimeError("no implementation of ours runs here")
        if entry.directions == ("step",):
            return case
        with rk.use_backend(next(iter(case.ours.values()))), torch.no_grad():
            outputs = work.ours.function(*work.ours.arguments)
        # Of a generator of their own: a capture that fails leaves the default one unusable.
        generator = torch.Generator(self.device).manual_seed(0)
        upstream = (torch.empty_like(y).normal_(generator=generator) for y in outputs)
        return case._replace(upstream=tuple(upstream))

    def launched(self, entry: Entry, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Launch each backend of ours once in each direction, whatever comes of it."""
        import rhovae_kernels as rk

        case = self.case(entry, self.fitting(entry, shape, dtype), dtype)
        for name, backend in case.ours.items():
            for direction in entry.directions:
                try:
                    with rk.use_backend(backend):
                        prepared(case.work.ours, direction, case.upstream)()
                except Exception as error:
                    self.way_failed(case, name, direction, error)

    def verified(
        self,
        entry: Entry,
        shape: tuple[int, int],
        dtype: torch.dtype,
        competitors: bool = True,
    ) -> Case:
        """The case with the ways that gave the right results."""
        import rhovae_kernels as rk

        case = self.case(entry, shape, dtype)
        others = case.work.others if competitors else {}
        for name, way in (dict.fromkeys(case.ours, case.work.ours) | others).items():
            try:
                with rk.use_backend(case.ours.get(name)):
                    if way.exact is not None:
                        held_against_exact(way, case.upstream, case.bound(name), entry.by_row)
                        case.verified[name] = True
                case.ways[name] = way
            except Exception as error:
                self.way_failed(case, name, "", error)
        return case

    def left_untimed(self, what: str, why: str) -> None:
        line = f"{what}: {why}"
        if line not in self.not_timed:
            self.not_timed.append(line)
        self.say(f"not timed: {line}")

    def way_failed(self, case: Case, name: str, how: str, error: Exception) -> None:
        """A failure where it is one of ours; a competitor that fails is not timed."""
        self.log.write(traceback.format_exc())
        what, why = f"{case.label} {how}, {name}", sentence(error)
        if name in case.ours:
            self.failed(what, why)
        else:
            self.left_untimed(what, why)

    def compare(self, case: Case, direction: str, mode: str) -> None:
        """Time one direction in one mode, and keep a row for each backend and competitor."""
        import rhovae_kernels as rk

        def within(name: str) -> rk.use_backend:
            return rk.use_backend(case.ours.get(name))

        variants, repeats = {}, {}
        for name, way in case.ways.items():
            if direction not in way.directions:
                continue
            try:
                with within(name):
                    if mode == "graph" and not self.dry_run:
                        bound = case.bound(name) if name in case.verified else None
                        call, repeats[name] = captured(way, direction, case.upstream, bound)
                    else:
                        call, repeats[name] = prepared(way, direction, case.upstream), 1
                        call()
                variants[name] = call
            except Exception as error:
                self.capture_failed |= mode == "graph"
                self.way_failed(case, name, f"{direction} {mode}", error)
        if not variants:
            return
        clock = by_launches if mode == "launch" else by_events
        times = self.timed(variants, clock, within)
        ms = {name: value / repeats[name] for name, value in times.items()}
        competitors = [name for name in ms if name not in case.ours] or [None]
        for name, backend in case.ours.items():
            for competitor in competitors if name in ms else ():
                theirs = None if competitor is None else ms[competitor]
                self.rows.append(
                    {
                        "op": case.entry.op,
                        "shape": list(case.shape),
                        "dtype": type_name(case.dtype),
                        "direction": direction,
                        "mode": f"{mode} (a plain call)" if self.dry_run else mode,
                        "backend": backend,
                        "ms": ms[name],
                        "competitor": competitor,
                        "competitor_ms": theirs,
                        "ratio": None if theirs is None else theirs / ms[name],
                        "percent_of_limit": self.percent(case, direction, ms[name]),
                        # Null where there is nothing to hold it against: see `Way.exact`.
                        "verified": case.verified.get(name),
                        "competitor_verified": case.verified.get(competitor),
                    }
                )

    def percent(self, case: Case, direction: str, ms: float) -> float | None:
        """The least time that the op can take, in percent of the time it took."""
        cost = case.work.costs.get(direction)
        if cost is None or not self.limits:
            return None
        rate = self.limits[f"{type_name(case.dtype)}_flops_per_second"]
        return 1e5 * cost.seconds(self.limits["copied_bytes_per_second"], rate) / ms

    def table(self) -> str:
        """One line a measurement of ours, beside the best of the competitors."""
        lines = [
            f"{'op':<24}{'shape':<14}{'dtype':<9}{'direction':<10}{'mode':<7}{'backend':<8}"
            f"{'ms':>9} {'% limit':>8} {'ratio':>7}  to"
        ]
        best: dict[tuple, dict] = {}
        for row in self.rows:
            shape = "×".join(map(str, row["shape"]))
            key = (row["op"], shape, row["dtype"], row["direction"], row["mode"], row["backend"])
            if key not in best or (row["ratio"] or 0) < (best[key]["ratio"] or 0):
                best[key] = row
        for key, row in best.items():
            op, shape, dtype, direction, mode, backend = key
            percent, ratio = row["percent_of_limit"], row["ratio"]
            lines.append(
                f"{op:<24}{shape:<14}{dtype:<9}{direction:<10}{mode.split()[0]:<7}{backend:<8}"
                f"{row['ms']:>9.4f} {'' if percent is None else f'{percent:.0f}':>8} "
                f"{'' if ratio is None else f'{ratio:.2f}':>7}  {row['competitor'] or ''}"
            )
        return "\n".join(lines)

    def cases(self) -> list[tuple[Entry, tuple[int, int], torch.dtype]]:
        """Each entry that was asked for, at each shape and type; in a rehearsal, a tiny one.

        The largest of each come first: a run that is cut short has timed every op.
        """
        of_entries = map(self.cases_of, self.entries())
        return [case for turn in zip_longest(*of_entries) for case in turn if case is not None]

    def cases_of(self, entry: Entry) -> list[tuple[Entry, tuple[int, int], torch.dtype]]:
        shapes = [TINY] if self.dry_run else sorted(entry.shapes, key=math.prod)[::-1]
        return [(entry, shape, dtype) for shape in shapes for dtype in entry.dtypes]

    def entries(self) -> list[Entry]:
        """Those that were asked for; in a rehearsal without those that look at what they learn."""
        return [
            entry
            for entry in gpu_cases.ENTRIES
            if (self.ops is None or entry.op in self.ops)
            and not (self.rehearsal and entry.directions == ("step",))
        ]

    def test_files(self) -> list[str]:
        """Those of the rooms whose ops were asked for."""
        rooms = [
            path.stem
            for path in sorted((ROOT / "python_ref").glob("*.py"))
            if (ROOT / "tests" / "ops" / f"test_{path.stem}.py").exists()
        ]
        return [
            f"tests/ops/test_{room}.py"
            for room in rooms
            if self.ops is None or any(op.startswith(room) for op in self.ops)
        ]

    def run(self) -> int:
        """All steps; the exit status."""
        self.step("build", self.build)
        self.step("machine", lambda: self.result.update(machine=harness.machine()))
        if self.wheels is not None:
            self.step("wheels", partial(self.unpack, self.wheels))
        entries, files, cases = self.entries(), self.test_files(), self.cases()
        self.step("smoke test", partial(self.smoke, entries))
        if self.rehearsal:
            self.result["tests"] = "left out: a rehearsal computes nothing"
        else:
            self.step("limits", self.measure_limits)
            self.measure_each(cases[: len(entries)])
            if not self.tested:
                self.result["tests"] = "left out, as was asked"
            elif files:
                self.step("tests", partial(self.tests, files))
            self.measure_each(cases[len(entries) :])
            self.say("")
            if self.dry_run:
                self.say("A dry run: the times below are no figures.")
            self.say(self.table())
        for what in self.not_run:
            self.say(f"not run: {what}")
        for failure in self.failures:
            self.say(f"FAILED: {failure['what']}: {failure['error']}")
        self.say("")
        for line in self.summary():
            self.say(line)
        self.log.close()
        return 1 if self.failures else 3 if self.not_run else 0

    def measure_each(self, cases: list[tuple[Entry, tuple[int, int], torch.dtype]]) -> None:
        for entry, shape, dtype in cases:
            function = getattr(entry.make, "func", entry.make).__name__
            what = f"{entry.op} {shape[0]}×{shape[1]} {type_name(dtype)} ({function})"
            self.step(what, partial(self.measure, entry, shape, dtype))
            if self.capture_failed and not self.dry_run:
                self.restart()

    def restart(self) -> None:
        """Go on in a process of its own: a capture that failed keeps memory and random numbers."""
        self.say("a capture failed: on in a new process")
        self.log.close()
        options = [*sys.argv[1:], "--resume", "--minutes", str(max(0.0, self.left() / 60))]
        os.execv(sys.executable, [*PROGRAM, *options])

    def summary(self) -> list[str]:
        """The run in `SUMMARY_LINES` lines at most."""
        machine = self.result["machine"]
        limits = (f"{name} {value:.3g}" for name, value in self.limits.items())
        lines = [
            f"on {machine.get('gpu', machine.get('cpu'))}, torch {machine.get('torch')}",
            f"build: {self.result.get('build')}; tests: {self.result.get('tests')}",
            f"limits: {', '.join(limits) or 'not measured'}",
            f"{len(self.rows)} rows, {len(self.failures)} failures, {len(self.not_run)} not run, "
            f"{len(self.not_timed)} not timed",
        ]
        written = f"written: {self.out / 'gpu_suite.json'}, {self.out / 'gpu_suite.log'}"
        failed = [f"FAILED: {f['what']}: {f['error']}" for f in self.failures]
        # The least share of the limit of each op and backend: where there is most to gain.
        least: dict[tuple[str, str], dict] = {}
        for row in self.rows:
            key = row["op"], row["backend"]
            if row["percent_of_limit"] is not None and (
                key not in least or row["percent_of_limit"] < least[key]["percent_of_limit"]
            ):
                least[key] = row
        slowest = [
            f"{op}, {backend}: {row['percent_of_limit']:.0f}% of the limit at the least, at "
            f"{'×'.join(map(str, row['shape']))} {row['dtype']}, {row['direction']}, {row['mode']}"
            for (op, backend), row in sorted(
                least.items(), key=lambda item: item[1]["percent_of_limit"]
            )
        ]
        for part in (failed, slowest):
            free = SUMMARY_LINES - 1 - len(lines)
            if len(part) > free:
                part = [*part[: free - 1], f"and {len(part) - free + 1} more"] if free > 1 else []
            lines += part
        return [*lines, written]


def smoke(suite: Suite, numbers: list[int]) -> int:
    """Call and verify each of these entries on a small shape; the exit status.

    In a rehearsal, call each of their cases.
    """
    for number in numbers:
        entry = gpu_cases.ENTRIES[number]
        print(f"smoke {number} {entry.op}", flush=True)
        before = len(suite.failures)
        try:
            with tf32_allowed(entry.tf32):
                if suite.rehearsal:
                    for case in suite.cases_of(entry):
                        suite.launched(*case)
                else:
                    shape = TINY if suite.dry_run else SMALL
                    suite.verified(entry, shape, entry.dtypes[0], competitors=False)
                if not suite.dry_run:
                    torch.cuda.synchronize()
            said = "; ".join("{what}: {error}".format(**f) for f in suite.failures[before:])
        except Exception as error:
            said = sentence(error)
            suite.failed(entry.op, said)
        well = "launched" if suite.rehearsal else "right"
        print(f"smoke {number} {entry.op}: {said or well}", flush=True)
    return 1 if suite.failures else 0


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Products of float32 are, or are not, TF32's."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def prepared(way, direction: str, upstream) -> Callable[[], object]:
    """A call without arguments that takes one way in one direction."""
    if direction == "step":
        return partial(way.function, *way.arguments)
    # Leaves of their own: a backward pass waits for the stream that a leaf was first used on, which
    # no capture may do.
    arguments = [x.detach().requires_grad_(x.requires_grad) for x in way.arguments]
    leaves = [x for x in arguments if x.requires_grad]
    if direction == "both":
        return harness.forward_backward(lambda: way.function(*arguments), leaves, upstream)
    if direction == "backward":
        outputs = way.function(*arguments)
        return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)

    def forward():
        with torch.no_grad():
            return way.function(*way.arguments)

    return forward


def captured(way, direction: str, upstream, bound: float | None) -> tuple[Callable, int]:
    """The replay of a CUDA graph of the call, and how many calls are in it.

    Short calls are several in one graph, or the replay's own cost would be what is measured. What
    the replay gives is held against a plain call, within `bound`.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # A backward pass runs on the stream of its forward pass: this one, which is captured.
        call = prepared(way, direction, upstream)
        call()
        plain = call()
        repeats = 10 if by_events(call) < 1e-4 else 1
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(repeats):
            results = call()
    graph.replay()
    torch.cuda.synchronize()
    if bound is not None:
        harness.verify(map(some_elements, results), map(some_elements, plain), bound)

    # What the graph reads and writes lives as long as its replay: to begin another capture unmaps
    # memory that nobody holds.
    def replay(held=(call, results)) -> None:
        graph.replay()

    return replay, repeats


def some_elements(x: torch.Tensor) -> torch.Tensor:
    """Of a large tensor a part, an odd number of elements apart: it has to fit in float64."""
    return x.flatten()[:: x.numel() // VERIFIED_ELEMENTS | 1]


def held_against_exact(way, upstream, bound: float, by_row: bool) -> None:
    """Raise where outputs, or gradients where they are timed, are not those of `way.exact`."""
    rows = way.arguments[0].shape[0]
    step = max(1, way.arguments[0].numel() // VERIFIED_ELEMENTS) if by_row else 1

    def some(x):
        return x[::step] if x.dim() and x.shape[0] == rows else x

    def double(x):
        if not x.is_floating_point():
            return x
        return some(x.detach()).double().requires_grad_(x.requires_grad)

    differentiated = not {"backward", "both"}.isdisjoint(way.directions)
    # What is only run forwards keeps nothing for a backward pass.
    with torch.set_grad_enabled(differentiated):
        outputs = way.function(*way.arguments)
        exact_arguments = list(map(double, way.arguments))
        exact = way.exact(*exact_arguments)
    harness.verify(map(some, outputs), exact, bound)
    if differentiated:
        leaves = [x for x in way.arguments if x.requires_grad]
        gradients = torch.autograd.grad(outputs, leaves, upstream)
        expected = torch.autograd.grad(
            exact,
            [x for x in exact_arguments if x.requires_grad],
            [some(u).double() for u in upstream],
        )
        harness.verify(map(some, gradients), expected, bound)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for gpu_suite.json and gpu_suite.log")
    parser.add_argument("--ops", help="only these, with commas between")
    parser.add_argument("--minutes", type=float, default=9.0, help="time it may take: 9")
    parser.add_argument("--resume", action="store_true", help="go on with what OUT holds")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--wheels", type=Path, help="folder of the competitors' wheels")
    parser.add_argument("--smoke", help=argparse.SUPPRESS)  # in the process of a smoke test
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument(
        "--rehearsal", action="store_true", help="launch every case, verify nothing"
    )
    given = parser.parse_args(arguments)
    ops = given.ops.split(",") if given.ops else None
    known = sorted({e.op for e in gpu_cases.ENTRIES})
    unknown = sorted(set(ops or ()) - set(known))
    if unknown:
        parser.error(f"--ops names {', '.join(unknown)}; there are {', '.join(known)}")
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --dry-run goes through the suite without one")
    # A backward pass that is timed alone runs many times over the same saved tensors.
    with torch._functorch.config.patch(donated_buffer=False):
        suite = Suite(
            given.out,
            ops,
            given.minutes,
            given.dry_run,
            not given.no_tests,
            given.wheels,
            given.rehearsal,
            given.resume,
        )
        if given.smoke:
            return smoke(suite, list(map(int, given.smoke.split(","))))
        return suite.run()


if __name__ == "__main__":
    sys.exit(main())
