"""`python -m jaxformer`: the command line, for where the script `jaxformer` is not on the path."""

import sys

from jaxformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
