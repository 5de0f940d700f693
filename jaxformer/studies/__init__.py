"""Many runs as one question.

What lives here: the demonstration of what pretraining is worth (`demo`).
What may come in: sweeps, reproductions of the papers' tables: whatever starts runs and compares them.
What must not: how one run trains (runs), and how its numbers are drawn (report)."""

from jaxformer.studies.demo import run_demo

__all__ = ["run_demo"]
