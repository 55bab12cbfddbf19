"""`python -m experiments NAME`: runs one recipe."""

from __future__ import annotations

import sys

from experiments.harness.command_line import main

if __name__ == "__main__":
    sys.exit(main())
