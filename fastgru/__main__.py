"""Command line: ``fastgru demo``, ``fastgru bench`` and ``fastgru info``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastgru
from fastgru import demo


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


def _add_plot(command: argparse.ArgumentParser, name: str) -> None:
    plot = command.add_mutually_exclusive_group()
    plot.add_argument(
        "--plot", type=_file, metavar="PATH", default=Path(name), help="PNG file to write"
    )
    plot.add_argument(
        "--no-plot",
        action="store_const",
        const=None,
        dest="plot",
        default=argparse.SUPPRESS,
        help="write no PNG file",
    )


def _bench(**options: Any) -> int:
    # Benchmarks stand above the package: this command is all that reaches up to them.
    from fastgru.benchmarks import bench

    return bench.main(**options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        Exit status: 0, 1 when `bench` could not measure something, or 2 when no command is given.
    """
    parser = argparse.ArgumentParser(
        prog="fastgru", description="Gated recurrent units for arrays."
    )
    commands = parser.add_subparsers(title="commands", dest="command")

    about = "forecast the weekly CO2 record of Mauna Loa with a GRU and an LSTM"
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
    _add_plot(run, "forecast.png")

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
    run.add_argument(
        "--json",
        type=_file,
        metavar="PATH",
        dest="json_path",
        default=Path("bench.json"),
        help="file to write",
    )
    _add_plot(run, "bench.png")

    about = "print versions, SIMD width, threading layer, cache folder and GPU"
    commands.add_parser("info", help=about, description=about)

    args = vars(parser.parse_args(argv))
    command = args.pop("command")
    if command == "demo":
        demo.main(**args)
    elif command == "bench":
        return _bench(**args)
    elif command == "info":
        fastgru.show_config()
    else:
        parser.print_help(sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
