"""`rhovae doctor`, `demo` and `bench`: what runs here, and how fast."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from rhovae_kernels import backends
from rhovae_kernels.cli.app import AsJson, app, print_json
from rhovae_kernels.ops.op import public_ops


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Which implementation of each op runs on each device of this machine, and why.

    Exits with 1 where an op has none.
    """
    rows, build = backends.report(public_ops()), backends.build_info()
    if as_json:
        print_json({"ops": [row._asdict() for row in rows], "build": build})
    else:
        width = max(18, *(len(row.op) + 1 for row in rows))
        for row in rows:
            print(f"{row.op:<{width}}{row.device:<6}{row.backend:<11}{row.why}")
        print(
            "extension: "
            + (", ".join(f"{k} {v or 'none'}" for k, v in build.items()) or "not built")
        )
    if any(row.backend == "none" for row in rows):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for results.")] = Path("runs/demo"),
) -> None:
    """Check and time each op, then train a plain VAE and a rho-VAE on handwritten digits."""
    from rhovae_kernels.demo import demo as run_demo

    run_demo(out)


@app.command()
def bench(
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON to write, table and charts beside it. If left out, the one of this "
            "machine's instruction set in benchmarks/results, charted beside the others there."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Run the benchmarks whose names match this.")
    ] = None,
) -> None:
    """Time the ops against what people use today: each verified first, all timed in turns."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    if not (folder / "report.py").exists():
        raise FileNotFoundError(
            f"benchmarks are part of the source, not of the installed package: {folder} is not "
            "there; run this in an editable install (pip install --no-build-isolation -e .)"
        )
    results, kept = folder / "results", out is None
    if out is None:
        out = results / f"cpu-{backends.build_info()['instructions']}.json"
    if out.suffix != ".json":
        raise ValueError(f"--out is {str(out)!r}; it must end in .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    measured = out.with_suffix(".json.part")
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "--benchmark-quiet"]
    command += ["-o", "python_files=bench_*.py", f"--benchmark-json={measured}"]
    run = subprocess.run([*command, "-k", only] if only else command, check=False)
    if run.returncode != 0:
        raise OSError(f"the benchmarks failed (status {run.returncode}): {out} is left as it was")
    measured.replace(out)
    report = [sys.executable, str(folder / "report.py"), str(out)]
    if kept:
        report += [str(path) for path in sorted(results.glob("cpu-*.json")) if path != out]
        report += ["--charts", str(results / "cpu")]
    subprocess.run(report, check=True)
