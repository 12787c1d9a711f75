"""``python -m taylorseer``."""

import sys

from taylorseer.cli import main

sys.exit(main())
