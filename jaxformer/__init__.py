"""jaxformer: decoder-only, encoder-only and encoder-decoder Transformers in JAX and Flax.

    import jaxformer
    run = jaxformer.load("runs/gpt-smoke")

The command line (`jaxformer --help`) does the rest. Importing this package imports neither JAX nor anything else.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxformer.report import load_study
    from jaxformer.runs import load
    from jaxformer.studies import sweep

__all__ = ["__version__", "load", "load_study", "sweep"]
__version__ = "0.1.0"

# XLA logs what concerns its developers; ours reaches Python as an exception. It reads this when it is first used.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name: str) -> Any:
    """Import what is handed on when it is first asked for, so that `jaxformer --help` need not wait for JAX."""
    if name == "load":
        from jaxformer.runs import load

        return load
    if name == "load_study":
        from jaxformer.report import load_study

        return load_study
    if name == "sweep":
        from jaxformer.studies import sweep

        return sweep
    raise AttributeError(f"module 'jaxformer' has no attribute '{name}'")
