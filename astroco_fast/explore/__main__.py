"""`python -m astroco_fast.explore`."""

import sys

from astroco_fast.explore import main

if __name__ == "__main__":
    sys.exit(main())
