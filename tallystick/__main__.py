"""`python -m tallystick`: the command line, also where it is not installed as `tallystick`."""

import sys

from tallystick.cli import main

if __name__ == "__main__":
    sys.exit(main())
