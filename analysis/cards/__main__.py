"""`python -m analysis.cards`: writes docs/models.md."""

import sys

from analysis.cards.command import main

if __name__ == "__main__":
    sys.exit(main())
