"""Places to run: one module per place, each of which starts the processes of a run there."""
