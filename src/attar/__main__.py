"""`python -m attar` is the same as `attar`."""

import sys

from attar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
