"""`python -m benchmarks NAME [options]`; without a name, what there is."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from app.core.errors import TetradError
from app.core.startup import start_tuned


def main() -> int:
    """Runs one benchmark as a command of its own."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"Usage: python -m benchmarks NAME [options], where NAME is one of {', '.join(names)}.", file=sys.stderr)
        return 2
    name = f"benchmarks.{sys.argv.pop(1)}"
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except TetradError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    start_tuned()
    sys.exit(main())
