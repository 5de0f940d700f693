"""The former name of `finetune/area`: both are one experiment.

jaxformer train --config=finetune_area:bert,smoke --config.init_from=runs/bert-smoke
"""

from .finetune.area import get_config

__all__ = ["get_config"]
