"""Experiments: one file each, numbers and names only. `jaxformer train --config=NAME[:ARG]` runs one."""
