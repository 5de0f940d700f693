"""Translation as a task: the original Transformer, and BART and T5 from a checkpoint (T5, section 2.4; BART, 3.4).

jaxformer train --config=finetune/translate:t5 --config.init_from=RUN \\
    --config.data.name=parallel --config.data.path=DIR/train --config.data.validation_path=DIR/val \\
    --config.data.languages=en,de
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("t5", "bart", "transformer")
# How the papers let them translate: Transformer, section 6.1; T5, section 3.7; BART from Romanian, in its code's terms.
BEAMS = {
    "transformer": {"num_beams": 4, "length_penalty": "gnmt", "length_alpha": 0.6, "extra_length": 50},
    "t5": common.T5_BEAMS,
    "bart": {"num_beams": 5, "length_penalty": "power", "length_alpha": 1.0, "early_stopping": True},
}


def get_config(arg: str = "t5") -> ConfigDict:
    """`jaxformer train --config=finetune/translate:t5|bart|transformer[,SIZE][,smoke|small] --config.init_from=RUN`;
    the original Transformer is trained from scratch: without init_from, and with a size.

    From English to German. Another pair: task.input, data.label_field (the language to write) and the data.
    """
    config, family, words = common.begin(arg, "t5", FAMILIES)
    if family == "transformer" and not words:
        config.model = {"preset": "transformer_base"}
    prompt = "translate English to German: {en}" if family == "t5" else "{en}"
    config.task = {"name": "text_to_text", "input": prompt, "target_kind": "text", "metrics": ("bleu",)}
    config.task.update({"sequence_length": 128, "target_length": 128})
    if family != "t5":
        config.task.label_smoothing = 0.1
    config.data = common.tfds("wmt14_translate/de-en", test_split="test", label_field="de")
    config.generation = dict(BEAMS[family])
    optimizer = config.optimizer.to_dict()
    common.train(config, family, words, examples=4_500_000, epochs=1, batch_size=128)
    if family == "transformer":  # its own optimizer and schedule
        config.optimizer.update(optimizer | {"warmup_share": 0.0})
    return config
