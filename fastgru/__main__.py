"""Command line: ``fastgru demo``, ``bench``, ``compare``, ``compile`` and ``info``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import fastgru
from fastgru import demo
from fastgru.backends import backend
from fastgru.check import cell_named


def _at_least(minimum: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be at least {minimum}: {text}")
    return value


def _positive(text: str) -> int:
    return _at_least(1, text)


def _non_negative(text: str) -> int:
    return _at_least(0, text)


def _file(text: str) -> Path:
    # Checked here, or a mistyped folder would show only after the training.
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"not a file in an existing folder: {text!r}")
    return path


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(_positive(size) for size in text.split(","))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"must be four sizes, T,B,I,H: {text!r}")
    return sizes


def _add_file(command: argparse.ArgumentParser, option: str, name: str, kind: str) -> None:
    """An option to write a file, of this name if no other is given."""
    command.add_argument(
        f"--{option}",
        type=_file,
        nargs="?",
        const=Path(name),
        default=argparse.SUPPRESS,
        metavar="PATH",
        help=f"write {kind} file, {name} if no path is given",
    )


def _compile(*, cell: Sequence[str], dtype: Sequence[str]) -> int:
    of = backend("numpy").kernels
    not_kept = 0
    makers = {
        f"{name} {kind} {kernel}": make
        for name in cell
        for kind in dtype
        for kernel, make in of.kernel_makers(cell_named(name), np.dtype(kind)).items()
    }
    with tqdm(makers.items(), unit="kernel") as bar:
        for label, make in bar:
            bar.set_description(label)
            not_kept += not make().is_kept
    where = of.describe()["compiled kernels"]
    if not_kept:
        print(f"error: {not_kept} of {len(makers)} kernels could not be written: {where}")
        return 1
    print(f"{len(makers)} kernels are compiled: {where}")
    return 0


def _bench(**options: Any) -> int:
    # Benchmarks stand above the package: this command is all that reaches up to them.
    from fastgru.benchmarks import bench

    return bench.main(**options)


def _compare(json: Path | None = None, markdown: Path | None = None, **options: Any) -> int:
    from fastgru.benchmarks import compare

    return compare.main(json_path=json, markdown_path=markdown, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        Exit status: 0; 1 when `bench` could not measure something, when `compile` could not write
        a kernel, or when nobody reads what is printed; 2 when no command is given.
    """
    try:
        status = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Of `fastgru info | head`, say. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastgru", description="Gated recurrent units for arrays."
    )
    commands = parser.add_subparsers(title="commands", dest="command")

    about = "forecast the weekly CO2 record of Mauna Loa with GRUs and LSTMs"
    run = commands.add_parser(
        "demo",
        help=about,
        description=about,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument(
        "--seed",
        type=_non_negative,
        default=0,
        help="of weights and window order; the first, if there are several",
    )
    run.add_argument(
        "--seeds",
        type=_positive,
        default=demo.SEEDS,
        help="networks of each cell to train, each with a seed of its own",
    )
    run.add_argument(
        "--epochs", type=_positive, default=20, help="passes over the training windows"
    )
    run.add_argument("--hidden-size", type=_positive, default=32, help="units of the layer")
    _add_file(run, "plot", "forecast.png", "a PNG")

    about = "time GRU against LSTM on this machine, beside the libraries that are installed"
    run = commands.add_parser(
        "bench",
        help=about,
        description=f"{about[0].upper()}{about[1:]}: onnxruntime, OpenVINO, PyTorch and JAX. "
        "Takes about a minute.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument("--rounds", type=_positive, default=3, help="turns that each one gets")
    run.add_argument(
        "--threads",
        type=_positive,
        default=argparse.SUPPRESS,
        help="that each one has; all cores if not given",
    )
    run.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=argparse.SUPPRESS,
        metavar="T,B,I,H",
        help="sizes to measure instead of three usual ones; may be repeated",
    )
    _add_file(run, "json", "bench.json", "a JSON")
    _add_file(run, "plot", "bench.png", "a PNG")

    about = "all cells side by side: sizes, times beside the LSTM's, errors on the demo's series"
    run = commands.add_parser(
        "compare",
        help=about,
        description=f"{about[0].upper()}{about[1:]}. Takes some ten minutes; with --seeds 0, which "
        "trains nothing, about one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument(
        "--cell",
        nargs="+",
        choices=fastgru.cells(),
        default=list(fastgru.cells()),
        help="which ones; all by default",
    )
    run.add_argument("--hidden-size", type=_positive, default=128, help="units, for the times")
    run.add_argument("--rounds", type=_positive, default=3, help="turns that each cell gets")
    run.add_argument(
        "--seeds", type=_non_negative, default=demo.SEEDS, help="networks of each cell to train"
    )
    run.add_argument(
        "--epochs", type=_positive, default=20, help="passes over the training windows"
    )
    _add_file(run, "json", "compare.json", "a JSON")
    _add_file(run, "markdown", "compare.md", "a Markdown")
    _add_file(run, "plot", "compare.png", "a PNG")

    about = "compile kernels and keep them, for container images and shared machines"
    run = commands.add_parser(
        "compile",
        help=about,
        description=f"{about[0].upper()}{about[1:]}: calls on NumPy arrays then compile none. The "
        "kernels are for the CPU of this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, known in (("cell", fastgru.cells()), ("dtype", ("float32", "float64"))):
        run.add_argument(
            f"--{option}",
            nargs="+",
            choices=known,
            default=list(known),
            help="which ones; all by default" if option == "cell" else "which ones",
        )

    about = "print versions, SIMD width, threading layer, cache folder and GPU"
    commands.add_parser("info", help=about, description=about)

    args = vars(parser.parse_args(argv))
    command = args.pop("command")
    if command == "demo":
        demo.main(**args)
    elif command == "bench":
        return _bench(**args)
    elif command == "compare":
        return _compare(**args)
    elif command == "compile":
        return _compile(**args)
    elif command == "info":
        fastgru.show_config()
    else:
        parser.print_help(sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
