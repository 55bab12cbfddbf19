"""`python -m experiments.validation RUN`: measures a finished run along long streams."""

from __future__ import annotations

import sys

from experiments.validation.command import main

if __name__ == "__main__":
    sys.exit(main())
