"""The frame of a job program: arguments from the command line, errors told as the `polysome` command tells them."""

import inspect
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import IO, Any

from rich.console import Console

from polysome.config import PolysomeError
from polysome.data.progress import Progress

LOG_SECONDS = 10.0


def program(main: Callable[..., None]) -> int:
    """Call `main` with the command line's arguments; returns the exit code.

    0: done; 2: bad configuration or data; 3: not enough resources; 130: stopped by Ctrl-C or SIGTERM. What is not
    expected keeps its traceback.
    """
    arguments = sys.argv[1:]
    signal.signal(signal.SIGTERM, terminated)
    try:
        inspect.signature(main).bind(*arguments)
    except TypeError:
        print(f"usage: {sys.argv[0]} RECIPE [key=value …]", file=sys.stderr)
        return 2
    try:
        main(*arguments)
    except PolysomeError as error:
        print(f"error {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def announcer(stream: IO[str]) -> Callable[[Any], None]:
    """Shows what a job announces on `stream`: lines as they are, tables drawn, progress as one line that is written
    over on a terminal and as a line every LOG_SECONDS elsewhere."""
    terminal = stream.isatty()
    console = Console(file=stream, highlight=False, width=None if terminal else 200)
    logged = time.monotonic()
    over = False

    def announce(what: Any) -> None:
        nonlocal logged, over
        if isinstance(what, Progress):
            if terminal:
                stream.write(f"\r\x1b[2K  {what.line()[: console.width - 3]}")
                over = True
            elif time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                stream.write(f"  {what.line()}\n")
        else:
            if over:
                stream.write("\n")
                over = False
            console.print(what, markup=False, soft_wrap=isinstance(what, str))
        stream.flush()

    return announce


def terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a job as Ctrl-C does: Ray is shut down and the run is marked interrupted."""
    raise KeyboardInterrupt
