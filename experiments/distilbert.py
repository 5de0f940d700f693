"""DistilBERT (Sanh et al. 2019): masked language modelling in half of BERT's layers, taught by BERT.

jaxformer train --config=bert:smoke        # the teacher
jaxformer train --config=distilbert:smoke
"""

from ml_collections import ConfigDict

from . import common


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=distilbert[:smoke|small]`; without ARG the paper's run.

    The teacher is the run that `jaxformer train --config=bert` with the same ARG leaves behind, or another by
    --config.distillation.teacher=RUN.
    """
    _, scale = common.parse_arg(arg, ("base",), "base")
    config = common.base()
    config.model = {"preset": "distilbert_base", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {
        "name": "masked_lm",
        "sequence_length": 512,
        "max_predictions": 77,
        "next_sentence": False,
        "frequency_smoothing": 0.7,
    }
    config.tokenizer = {"name": "wordpiece", "vocab_size": 30_522, "strip_accents": True}  # BERT's
    # BERT's text, by size: millions of words. bookscorpus is not in TFDS: a folder that you prepare.
    config.data = common.mixture({"bookscorpus": 800, "wikipedia/20230601.en": 2500})
    # Which layers to begin with, and the weights: not in the paper but in its code's command.
    config.distillation = {
        "teacher": "runs/bert",
        "layers": (0, 2, 4, 7, 9, 11),
        "temperature": 2.0,
        "soft_weight": 5.0,
        "hard_weight": 2.0,
        "cosine_weight": 1.0,
        "positions": "all",
    }
    # What the teacher has and the student has not.
    config.checkpoint.init_skip = ("encoder/inputs/token_types", "row_heads/.*")
    # Not published in the paper: its code's.
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 5e-4,
        "schedule": "linear_from_peak",
        "warmup_steps": 236,  # 5 %
        "beta2": 0.98,
        "epsilon": 1e-6,
        "weight_decay": 0.0,
        "clip_norm": 5.0,
    }
    # Steps not published: 3 epochs (its code's) of 3.3e9 words, counted as tokens, in batches of 4096 x 512.
    config.training.update({"num_steps": 4720, "batch_size": 4096, "phases": ()})
    if scale:
        common.shrink(config, scale)
        config.distillation.teacher = f"runs/bert-{scale}"
        config.distillation.layers = {"smoke": (0,), "small": (0, 2)}[scale]
        config.distillation.positions = "predicted"  # logits of all tokens would take most of the time
        config.model.num_layers = len(config.distillation.layers)
        config.model.max_length = config.objective.sequence_length = 128
        config.objective.max_predictions = 20
        config.training.batch_size = {"smoke": 24, "small": 16}[scale]
        config.optimizer.update({"learning_rate": {"smoke": 4e-3, "small": 1e-3}[scale], "warmup_steps": 50})
    return config
