"""The application that the commands join, and what they share."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ImportError as error:
    raise SystemExit(
        f"rhovae: {error.name} is missing; install it with: pip install 'rhovae_kernels[vae]'"
    ) from error

from rhovae_kernels import backends

app = typer.Typer(
    help="Structured-posterior VAEs as cheap as plain ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Directory that holds a directory of files for each data set."),
]
FidWeights = Annotated[
    Path | None, typer.Option(help="torch-fidelity's weights of Inception, for the metrics of FID.")
]
Parts = Annotated[
    str | None,
    typer.Option(
        help="FILE.py:NAME, a function that returns a dictionary of the parts that the run was "
        "given and cannot describe: encoder, decoder …"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; an error of ours is one line on stderr and exit status 1, 2 for usage."""
    try:
        app()
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        # Of PyTorch's own errors (out of memory, an overflow) the first line says what happened.
        ours = isinstance(error, (ValueError, OSError, FloatingPointError, backends.BackendError))
        message = str(error) if ours else str(error).partition("\n")[0]
        print(f"rhovae: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(1) from error


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def numbers_of(name: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError as error:
        wanted = "integers" if kind is int else "numbers"
        raise ValueError(f"{name} is {text!r}; it must be {wanted}, with commas between") from error


def parts_of(where: str | None) -> dict[str, Any]:
    """What the function returns that `--parts FILE.py:NAME` names; nothing where it is not given.

    Raises:
        ValueError: there is no such function, or it returns no dictionary of modules.
    """
    if where is None:
        return {}
    path, _, name = where.rpartition(":")
    if not path or not Path(path).is_file():
        raise ValueError(f"parts is {where!r}; it must be FILE.py:NAME, of a file that is there")
    spec = importlib.util.spec_from_file_location("rhovae_parts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"parts is {where!r}; {path} holds no function {name!r}")
    found = getattr(module, name)()
    if not isinstance(found, dict):
        raise ValueError(f"parts is {where!r}, which returns a {type(found).__name__}, no dict")
    return found
