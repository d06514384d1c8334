"""`python -m app`, the command `tetrad`, and the file that entrypoint.sh starts: see `app.cli`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    # Run as a file by an isolated interpreter (entrypoint.sh), which looks for code neither in the working directory
    # nor where the environment points: the package is where this file is.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Run the command line in a process with settings that suit networks; the command `tetrad`."""
    try:
        return _start()
    except KeyboardInterrupt:
        # It came while something was loaded; commands catch their own.
        return 130


def _start() -> int:
    from app.core.startup import end_with_parent, start_tuned
    from app.core.streams import open_standard_streams

    if not __package__:
        end_with_parent()
    start_tuned()
    open_standard_streams()
    # Child processes take the search path from this one; they must not look in the working directory before that.
    os.environ["PYTHONSAFEPATH"] = "1"
    from app.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
