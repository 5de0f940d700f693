"""Runs a fake: python tests/fake_cloud TOOL ARGUMENTS..."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)
    from fake_cloud import common

    sys.exit(common.run(importlib.import_module(f"fake_cloud.{sys.argv[1]}").main, sys.argv[2:]))
