"""`python -m pyvimtrt` is the command `pyvimtrt`."""

from __future__ import annotations

import sys

from pyvimtrt.cli import main

if __name__ == "__main__":
    sys.exit(main())
