"""`python -m app`: see `app.cli`."""

from __future__ import annotations

import sys

from app.core.startup import start_tuned

if __name__ == "__main__":
    start_tuned()
    from app.cli import main

    sys.exit(main())
