"""``python -m sandfleet.cli``: the ``sandfleet`` command of this interpreter."""

import sys

from sandfleet.cli import main

sys.exit(main())
