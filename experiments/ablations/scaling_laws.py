"""Scaling laws: how a language model's loss falls with its parameters, the tokens it reads, and the compute.

jaxformer reproduce scaling_laws
"""

from . import common

# Kaplan et al. 2020, of parameters without embeddings: L = (8.8e13 / N)^0.076, (5.4e13 / D)^0.095, (3.1e8 / C)^0.050.
EXPONENTS = {"parameters": 0.076, "tokens": 0.095, "flops": 0.050}
# Layers and d_model of the sizes 1, 2, …
SIZES = {
    "smoke": ((1, 32), (1, 64), (2, 64)),
    "small": ((1, 64), (2, 96), (3, 128), (4, 192)),
    "paper": ((2, 128), (4, 256), (6, 512), (12, 768), (24, 1024), (48, 1600)),
}
# Steps of the durations 1, 2, …: each reads as many tokens more than the one before.
STEPS = {"smoke": (10, 20, 40), "small": (80, 160, 320, 640), "paper": (3_900, 15_600, 62_500, 250_000)}
WARMUP = {"smoke": 5, "small": 30, "paper": 3000}


def _changes(scale: str, size: tuple[int, int], steps: int) -> dict:
    layers, width = size
    head = 64 if scale == "paper" else 32
    return {
        "model.num_layers": layers,
        "model.d_model": width,
        "model.d_ff": 4 * width,
        "model.num_heads": width // head,
        "model.head_dim": head,
        "training.num_steps": steps,
    }


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    sizes, steps = SIZES[scale], STEPS[scale]
    largest, longest = len(sizes), len(steps)
    # Every size as long as the longest, the largest one for every duration, and the diagonal between: the less compute
    # there is, the smaller the model that uses it best.
    by_size = [(number, longest) for number in range(1, largest + 1)]
    by_tokens = [(largest, number) for number in range(1, longest)]
    diagonal = [
        (number, number + longest - largest) for number in range(1, largest) if 0 < number + longest - largest < longest
    ]
    base = (largest, longest)

    def name(place: tuple[int, int]) -> str:
        return f"size {place[0]}, duration {place[1]}"

    rows = {
        name(place): {"set": {"pretraining": _changes(scale, sizes[place[0] - 1], steps[place[1] - 1])}}
        for place in dict.fromkeys([base, *by_size, *diagonal, *by_tokens])
    }
    short = {"training.eval_every": 0, "checkpoint.every": 0, "optimizer.warmup_steps": WARMUP[scale]}
    if scale == "smoke":
        kept: dict = {"objective.sequence_length": 64, "training.batch_size": 8, "evaluation.max_examples": 64}
        stage = {"config": "gpt2:124m,smoke", "set": short | kept}
    elif scale == "small":
        kept = {"training.batch_size": 8, "evaluation.max_examples": 512, "optimizer.learning_rate": 2e-3}
        # Few embeddings, which the law leaves out and the count of parameters has in it.
        kept |= {"tokenizer.vocab_size": 1024, "model.vocab_size": 1024}
        stage = {"config": "gpt2:124m,small", "set": common.NOVELS | short | kept}
    else:
        stage = {"config": "gpt2:124m", "set": {"optimizer.warmup_steps": WARMUP[scale]}}
    fits = [
        {"x": "parameters", "name": "L(N)", "rows": [name(place) for place in by_size]},
        {"x": "tokens", "name": "L(D)", "rows": [name(place) for place in [*by_tokens, base]]},
        {"x": "flops", "name": "L(C)", "rows": [name(place) for place in [*diagonal, base]]},
    ]
    return {
        "question": "By which power laws does the loss of a language model fall with parameters, tokens and compute?",
        "paper": "GPT-3 (Brown et al. 2020)",
        "place": "Figure 3.1, after Kaplan et al. 2020",
        "base": name(base),
        "seeds": common.SEEDS[scale],
        "stages": {"pretraining": stage},
        "columns": {
            "loss": common.judged("pretraining", "eval/loss", "min", scale=1),
            "parameters": {"measure": "parameters", "stage": "pretraining", "mode": "min"},
        },
        "rows": {row: {"paper": {}} | rest for row, rest in rows.items()},
        "fits": [fit | {"column": "loss", "paper": EXPONENTS[str(fit["x"])]} for fit in fits],
        "notes": [
            "Kaplan's exponents are those of parameters without the embeddings (which are counted here), of text that "
            "never repeats and of models trained until they learn no more; GPT-3's own fit of the loss to the "
            "compute has 0.048.",
            "The runs of L(N) read equally many tokens and those of L(D) train the largest size; L(C) takes, of each "
            "compute, one size, which need not be the best.",
        ],
    }
