"""`python -m tests.fuzz --cases 100000 --seed 3 --backend cpu triton`."""

import sys

from tests.fuzz.cli import main

if __name__ == "__main__":
    sys.exit(main())
