"""`python -m astroco_fast.finetune`."""

import sys

from astroco_fast.finetune import main

if __name__ == "__main__":
    sys.exit(main())
