"""Places to run: one module per place, each of which starts the processes of a run there and looks after them.

What lives here: this machine, SLURM, TPU VMs, Kubernetes and SkyPilot, around one description of a job (`job`).
What may come in: another place, as a module of its own and a line in `places.PLACES`.
What must not: how a run trains. A launcher knows a command line and its exit codes.
"""

LAUNCHED = "JAXFORMER_LAUNCHED"  # the variable by which a worker knows that it is one
