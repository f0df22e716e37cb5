"""What the subcommands share: options, named errors on standard error, and the events of a run on a terminal."""

from __future__ import annotations

import functools
import math
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import click

from qgis_iic.protocol.errors import EngineNotStarted, IicError, OutputIsOtherKind
from qgis_iic.protocol.events import Event, Failed, Progress, Result, Started, Warned, encode
from qgis_iic.protocol.job import LEAST_MEMORY, Job, Precision, Provider
from qgis_iic.protocol.names import names_a_file
from qgis_iic.protocol.requirements import install_command, lacking

PATH = click.Path(path_type=Path)


class _Source(click.types.StringParamType):
    """A raster: the path of a file, made absolute, or anything else that GDAL opens, left as it is."""

    name = "source"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return absolute(Path(value)) if names_a_file(value) else value


SOURCE = _Source()


class Minutes(click.FloatRange):
    """A number of them within a range; click takes what is no number, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        minutes = float(super().convert(value, param, ctx))
        if not math.isfinite(minutes):
            self.fail(f"{value} is no number of minutes", param, ctx)
        return minutes


accelerator_option = click.option(
    "--accelerator",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="What to train on; auto is cuda where there is one.",
)


def check_places(places: Path | None, data: Path | None, *named: object) -> None:
    """Raises UsageError for a protocol beside ground that is `named` by itself, and for its folder without it."""
    if places is not None and any(named):
        raise click.UsageError("--places names imagery and labels itself; leave out the options that do.")
    if places is None and data is not None:
        raise click.UsageError("--data goes with --places.")


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | str | None]) -> None:
    """Before what takes long: raises OutputNotWritable or OutputIsOtherKind for files that could not be written then.

    Args:
        outputs: that may exist, and are then replaced.
        inputs: that may not be.
    """
    from qgis_iic.engine.outputs import check_folder, check_is_no_source

    files = [str(file) for file in inputs if file is not None]
    named = [output for output in outputs if output is not None]
    for output in named:
        check_folder(output)
        check_is_no_source(str(output), files)
        if output.is_dir():
            raise OutputIsOtherKind(f"{output} is a folder. Choose the name of a file.")
    if len(set(named)) < len(named):
        raise OutputIsOtherKind("Two of the outputs have the same name.")


def named_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Ends the process with the message and the exit status of a named error; goes right below `@click.command`."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            try:
                command(*args, **kwargs)
            except ImportError as error:
                needed = install_command(sys.executable, lacking(error))
                raise EngineNotStarted(f"This Python lacks a library: {error}. Run this: {needed}") from error
        except IicError as error:
            if kwargs.get("events") == "json":
                click.echo(encode(Failed(error.code, error.message)))
            click.echo(f"iic: {error.code}: {error.message}", err=True)
            sys.exit(error.exit_status)
        except Exception as error:
            if kwargs.get("events") == "json" and not isinstance(error, click.ClickException):
                click.echo(encode(Failed(IicError.code, repr(error))))
            raise

    return wrapped


def numbers(count: int | None = None) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """Click callback for whole numbers separated by commas, `count` of them where that is given."""

    def parse(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        if text is None:
            return None
        try:
            parsed = tuple(int(part) for part in text.split(","))
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a list of whole numbers separated by commas") from error
        if count is not None and len(parsed) != count:
            raise click.BadParameter(f"{text!r} must be {count} numbers")
        return parsed

    return parse


bands_option = click.option(
    "--bands",
    callback=numbers(),
    help="Band numbers in the model's order, such as 1,2,3.  [default: by the raster's colour interpretation]",
)


def job_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `extract` and `segment` have in common, in the order of the help."""
    options = [
        click.option("--model", type=PATH, required=True, help="ONNX model that `iic export` made."),
        bands_option,
        click.option("--window", callback=numbers(4), metavar="COL,ROW,WIDTH,HEIGHT",
                     help="Part of the raster, in its own pixels.  [default: all of it]"),
        click.option("--tile-size", type=click.IntRange(min=1),
                     help="Largest side of the tiles in pixels, halo included; the answer does not depend on it.  "
                     "[default: what the memory allows]"),
        click.option("--memory", type=click.IntRange(min=LEAST_MEMORY), metavar="MB",
                     help="Memory that a run on a CPU may take: with more, up to some 2800, tiles are larger and "
                     "overlap less. On a GPU it bounds how far the reading runs ahead.  "
                     "[default: 1500, and tiles of four times the area of the model's own at most]"),
        click.option("--provider", type=click.Choice(get_args(Provider)), default="auto",
                     help="Where the network runs; auto takes the fastest that `iic info --devices` finds usable, "
                     "TensorRT not among them."),
        click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32",
                     help="Which of the model's sibling files to run; auto takes the fastest here, and the answer may "
                     "then differ from that of another machine."),
        click.option("--overwrite", is_flag=True, help="Replace what is there under the same name."),
        click.option("--events", type=click.Choice(["text", "json"]), default="text",
                     help="A progress bar, or one JSON object a line on standard output."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def on_interrupt(act: Callable[[], None]) -> None:
    """Has `act` called, rather than the process ended, when it is interrupted, terminated or loses its terminal.

    Where that comes again, it ends.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, _: object) -> None:
        signal.signal(number, signal.default_int_handler)  # which leaves time to remove what is half written
        act()

    for number in numbers:
        if before[number] != signal.SIG_IGN:  # as under nohup
            signal.signal(number, handle)


def run_job(job: Job, events: str) -> Result:
    """Runs the engine in this process and shows its events; an interrupt or a termination leaves no output."""
    from qgis_iic.engine import pipeline
    from qgis_iic.engine.cancellation import Cancellation

    cancellation = Cancellation()
    on_interrupt(cancellation.request)
    if events == "json":
        result = pipeline.run(job, lambda event: click.echo(encode(event)), cancellation)
        click.echo(encode(result))
        return result
    with _Terminal() as terminal:
        result = pipeline.run(job, terminal.show, cancellation)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    click.echo(f"Time: {stages}", err=True)
    return result


class _Terminal:
    """Shows the events of a run on standard error: messages, and a bar, or a line every tenth where it is a file."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tenths = 0

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def show(self, event: Event) -> None:
        match event:
            case Started():
                click.echo(f"{event.model} on {event.provider}, {event.tiles} tiles", err=True)
                if sys.stderr.isatty():
                    self._bar = click.progressbar(length=event.tiles, label="Tiles", file=sys.stderr, show_pos=True)
                    self._bar.render_progress()
            case Progress() if self._bar is not None:
                self._bar.update(event.done - self._bar.pos)
            case Progress() if event.done * 10 // event.total > self._tenths:
                self._tenths = event.done * 10 // event.total
                click.echo(f"{event.done} of {event.total} tiles, {event.remaining or 0:.0f} s to go", err=True)
            case Warned():
                click.echo(f"Warning: {event.message}", err=True)


def absolute(path: Path) -> str:
    return str(path.expanduser().absolute())
