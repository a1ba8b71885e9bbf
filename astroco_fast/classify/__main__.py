"""`python -m astroco_fast.classify`."""

import sys

from astroco_fast.classify import main

if __name__ == "__main__":
    sys.exit(main())
