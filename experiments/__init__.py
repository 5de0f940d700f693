"""Experiments: one file each, numbers and names only. `jaxformer train --config=NAME[:ARG]` runs one; a folder is part
of its name (`finetune/area`)."""
