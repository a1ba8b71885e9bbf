"""`python -m astroco_fast` is `astroco`."""

import sys

from astroco_fast.cli import main

sys.exit(main())
