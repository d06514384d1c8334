"""`python -m app`: see `app.cli`."""

from __future__ import annotations

import sys

from app.core.startup import start_tuned


def main() -> int:
    """Run the command line in a process with settings that suit networks; the command `tetrad`."""
    start_tuned()
    from app.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
