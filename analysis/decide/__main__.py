"""`python -m analysis.decide`: asks its four questions, or takes them as flags."""

import sys

from analysis.decide.command import main

if __name__ == "__main__":
    sys.exit(main())
