"""Fine-tuning: one file per task. `jaxformer train --config=finetune/NAME[:ARG]` runs one."""
