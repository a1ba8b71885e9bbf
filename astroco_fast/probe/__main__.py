"""`python -m astroco_fast.probe`."""

import sys

from astroco_fast.probe import main

if __name__ == "__main__":
    sys.exit(main())
