"""`python -m astroco_fast.reproduce`."""

import sys

from astroco_fast.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
