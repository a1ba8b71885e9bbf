"""`python -m astroco_fast.pretrain`."""

import sys

from astroco_fast.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
