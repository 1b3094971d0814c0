"""``python -m oram`` is the console script ``oram``."""

import sys

from oram.cli import main

if __name__ == "__main__":
    sys.exit(main())
