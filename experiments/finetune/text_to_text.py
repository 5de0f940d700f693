"""Fine-tuning T5 on a task of its paper, each as text to text with the paper's strings (T5, section 2.4, appendix D).

jaxformer train --config=finetune/text_to_text:t5,cola --config.init_from=RUN
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("t5",)
_TEXT = {"target_kind": "text", "target_length": 512}


# Of each task what the model reads, what it writes, what judges it (the released code's metrics), and its data. TFDS
# names the classes of GLUE and SuperGLUE with the words that T5 writes; of data that numbers them, `task.words` says
# which is which: {"0": "negative", "1": "positive"}.
TASKS: dict[str, tuple[dict, dict]] = {
    "cola": ({"input": "cola sentence: {sentence}", "metrics": ("matthews",)}, common.tfds("glue/cola")),
    "sst2": ({"input": "sst2 sentence: {sentence}", "metrics": ("accuracy",)}, common.tfds("glue/sst2")),
    "mrpc": (
        {"input": "mrpc sentence1: {sentence1} sentence2: {sentence2}", "metrics": ("f1_binary", "accuracy")},
        common.tfds("glue/mrpc"),
    ),
    "qqp": (
        {"input": "qqp question1: {question1} question2: {question2}", "metrics": ("f1_binary", "accuracy")},
        common.tfds("glue/qqp"),
    ),
    "stsb": (
        {
            "input": "stsb sentence1: {sentence1} sentence2: {sentence2}",
            "target_kind": "number",
            "metrics": ("pearson", "spearman"),
        },
        common.tfds("glue/stsb"),
    ),
    "mnli": (
        {"input": "mnli hypothesis: {hypothesis} premise: {premise}", "metrics": ("accuracy",)},
        common.tfds("glue/mnli") | {"validation_split": "validation_matched"},
    ),
    "qnli": (
        {"input": "qnli question: {question} sentence: {sentence}", "metrics": ("accuracy",)},
        common.tfds("glue/qnli"),
    ),
    "rte": (
        {"input": "rte sentence1: {sentence1} sentence2: {sentence2}", "metrics": ("accuracy",)},
        common.tfds("glue/rte"),
    ),
    "cb": (
        {"input": "cb hypothesis: {hypothesis} premise: {premise}", "metrics": ("f1", "accuracy")},
        common.tfds("super_glue/cb"),
    ),
    "copa": (
        {
            "input": "copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
            "metrics": ("accuracy",),
        },
        common.tfds("super_glue/copa"),
    ),
    # The released code has left out the position of the word, which the paper's appendix still has.
    "wic": (
        {"input": "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}", "metrics": ("accuracy",)},
        common.tfds("super_glue/wic"),
    ),
    "boolq": (
        {"input": "boolq passage: {passage} question: {question}", "metrics": ("accuracy",)},
        common.tfds("super_glue/boolq"),
    ),
    # Judged by each answer; the paper's F1 and exact match are over all the answers to a question.
    "multirc": (
        {"input": "multirc question: {question} answer: {answer} paragraph: {paragraph}", "metrics": ("f1_binary",)},
        common.tfds("super_glue/multirc"),
    ),
    # The data is to be prepared: the entities joined by ", ", the right ones a list of references.
    "record": (
        {
            "input": "record query: {query} entities: {entities} passage: {passage}",
            "metrics": ("squad_f1", "squad_em"),
        }
        | _TEXT
        | {"target_length": 64},
        {"name": "json_lines", "path": "record.jsonl", "label_field": "answers"},
    ),
    # The pronoun between asterisks, the noun that it stands for as the label: WSC, WNLI and DPR alike.
    "wsc": (
        {"input": "wsc: {text}", "metrics": ("squad_em",)} | _TEXT | {"target_length": 64},
        {"name": "json_lines", "path": "wsc.jsonl", "label_field": "noun"},
    ),
    # The released code puts spaces around all punctuation of questions, contexts and answers first.
    "squad": (
        {
            "input": "question: {question} context: {context}",
            "target_kind": "span",
            "target_length": 64,
            "metrics": ("squad_em", "squad_f1"),
        },
        common.tfds("squad", label_field="answers"),
    ),
    "cnn_dailymail": (
        {"input": "summarize: {article}", "metrics": ("rouge2", "rouge1", "rougeLsum")} | _TEXT,
        common.tfds("cnn_dailymail", test_split="test", label_field="highlights"),
    ),
    "en_de": (
        {"input": "translate English to German: {en}", "metrics": ("bleu_intl",)} | _TEXT,
        common.tfds("wmt14_translate/de-en", test_split="test", label_field="de"),
    ),
    "en_fr": (
        {"input": "translate English to French: {en}", "metrics": ("bleu_intl",)} | _TEXT,
        common.tfds("wmt14_translate/fr-en", test_split="test", label_field="fr"),
    ),
    "en_ro": (
        {"input": "translate English to Romanian: {en}", "metrics": ("bleu_intl",)} | _TEXT,
        common.tfds("wmt16_translate/ro-en", test_split="test", label_field="ro"),
    ),
}
MIXTURES = {
    "glue": ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"),
    "super_glue": ("boolq", "cb", "copa", "multirc", "rte", "wic"),
    "all": ("glue", "super_glue", "squad", "cnn_dailymail", "en_de", "en_fr", "en_ro"),
}
WITH_BEAMS = ("cnn_dailymail", "en_de", "en_fr", "en_ro")


def get_config(arg: str = "t5,cola") -> ConfigDict:
    """`jaxformer train --config=finetune/text_to_text:t5,TASK[,SIZE][,smoke|small] --config.init_from=RUN`, TASK one of
    those above or a mixture: glue, super_glue, all.

    Mixtures draw their tasks in proportion to their sizes, of which 2^19 examples count at most (section 3.5.2).
    """
    words = (arg or "t5,cola").split(",")
    chosen = [word for word in words if word in (*TASKS, *MIXTURES)] or ["cola"]
    rest = [word for word in words if word not in chosen]
    if len(chosen) > 1:
        raise ValueError(
            f"'{arg}': {' and '.join(chosen)} are two tasks; give one, or a mixture: {', '.join(MIXTURES)}"
        )
    (name,) = chosen
    config, _, words = common.begin(",".join(rest), "t5", FAMILIES)
    if name in MIXTURES:
        members = _members(name)
        tasks = [_task(member) | {"title": member, "corpora": [n]} for n, member in enumerate(members)]
        data = [dict(TASKS[member][1]) for member in members]
        config.task = {"name": "mixture", "members": tasks}
        config.data = {"name": "mixture", "members": data, "mixing": "proportional", "cap": 2**19}
        best, mode = "eval/loss", "min"
    else:
        config.task, config.data = _task(name), dict(TASKS[name][1])
        best, mode = f"eval/{TASKS[name][0]['metrics'][0]}", "max"
    if name in WITH_BEAMS:
        config.generation = dict(common.T5_BEAMS)
    common.train(config, "t5", words, examples=2**18, epochs=128, batch_size=128)  # the baseline's 2^18 steps
    config.training.eval_every = config.checkpoint.every = 5000
    config.checkpoint.update({"best_metric": best, "best_mode": mode})
    if {"smoke", "small"} & set(words):
        config.training.update({"num_steps": 375, "batch_size": 16, "eval_every": 125})
        config.checkpoint.every = 125
        config.evaluation.max_examples = 256
        for task in config.task.get("members", [config.task]):
            task.update({"sequence_length": 128, "target_length": min(task["target_length"], 64)})
    else:  # also v1.1, which was pretrained without
        config.model.update({"dropout": 0.1, "attention_dropout": 0.1, "hidden_dropout": 0.1, "final_dropout": 0.1})
    return config


def _members(name: str) -> list[str]:
    """Return the tasks of a mixture, each once."""
    found = [part for member in MIXTURES[name] for part in (_members(member) if member in MIXTURES else [member])]
    return list(dict.fromkeys(found))


def _task(name: str) -> dict:
    """Return a task's section: 512 tokens are the paper's longest row, 16 more than any class or number takes."""
    return {"name": "text_to_text", "sequence_length": 512, "target_length": 16} | dict(TASKS[name][0])
