"""`python -m tests.soak --minutes 30 --seed 1`."""

import sys

from tests.soak.cli import main

if __name__ == "__main__":
    sys.exit(main())
