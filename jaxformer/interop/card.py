"""The model card of an export: what the model is, what it learnt from, how good it is, and what it cost."""

from pathlib import Path, PurePath
from typing import Any

from jaxformer.checkpoint import Source
from jaxformer.models import count_parameters
from jaxformer.report import read_run
from jaxformer.runs import StoredRun
from jaxformer.tables import metric

_FAMILIES = {
    "decoder_only": "A decoder-only", "encoder_only": "An encoder-only", "encoder_decoder": "An encoder-decoder",
}  # fmt: skip


def model_card(workdir: Path, run: StoredRun, loader: str, source: Source) -> str:
    """Return the README.md of an export of the parameters of `source`, from what the run directory holds; nothing is
    claimed that it does not say."""
    found, config = read_run(workdir), run.config.to_dict()
    model = config["model"]
    layers = f"{model['num_layers']} layers" + " in each stack" * (model["family"] == "encoder_decoder")
    sizes = f"{layers}, {model['num_heads']} heads, width {model['d_model']}, feed-forward width {model['d_ff']}"
    lines = [
        "---", "library_name: transformers", "tags: [jaxformer]", "---", "",
        f"# {found.name}", "",
        f"{_FAMILIES[model['family']]} Transformer (preset `{model['preset']}`: {sizes}) with "
        f"{count_parameters(run.model):,} parameters and a vocabulary of {model['vocab_size']:,}, "
        "exported by jaxformer.",
        "",
        "```python", f"from transformers import {loader}, AutoTokenizer", "",
        f'model = {loader}.from_pretrained("PATH")', 'tokenizer = AutoTokenizer.from_pretrained("PATH")', "```", "",
        "## Training", "", f"Config: `{found.record['name']}`.", "",
        "| | |", "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _training(found, config, source).items()),
    ]  # fmt: skip
    if run.labels:
        lines += ["", "## Labels", "", ", ".join(f"{n}: {label}" for n, label in enumerate(run.labels)) + "."]
    evaluations = {name: result for name, result in found.results.items() if _is_of(result, source)}
    rows = [
        f"| {name} | {metric_name} | {metric(value)} |"
        for name, result in evaluations.items()
        for metric_name, value in (result.get("metrics") or {}).items()
        if isinstance(value, int | float)
    ]
    if rows:
        lines += ["", "## Evaluation", "", "| what | metric | value |", "| --- | --- | --- |", *rows]
    lines += ["", "## Limits", "", "Use it for what its training data covers; its biases are those of that text."]
    return "\n".join(lines) + "\n"


def _is_of(result: Any, source: Source) -> bool:
    """Whether this is what an evaluation of these parameters has found."""
    step = int(source.checkpoints[-1].name)
    same = isinstance(result, dict) and result.get("step", step) == step
    return same and {key: result[key] for key in ("average", "parameters") if key in result} == source.facts


def _training(found: Any, config: dict[str, Any], source: Source) -> dict[str, Any]:
    """Return what is known of the training; of imported weights that is nothing."""
    last = max((line.get("step", 0) for line in found.metrics), default=0)
    if not last:
        return {"weights": "imported; their own card says how they were trained"}
    step, of = int(source.checkpoints[-1].name), source.facts
    averaged = f"the mean of those of steps {', '.join(map(str, of['average']))}" if "average" in of else ""
    kept = "the moving average of what was trained" if "parameters" in of else ""
    emissions, kind = found.emissions, "task" if config.get("task") else "objective"
    return {
        kind: config[kind]["name"],
        "data": config["data"]["name"],
        **({"checkpoint": averaged or f"step {step:,}"} if averaged or step != last else {}),
        **({"parameters": kept} if kept else {}),
        "steps": f"{last:,} of batch size {config['training']['batch_size']}",
        "optimizer": f"{config['optimizer']['name']}, learning rate {config['optimizer']['learning_rate']:g}",
        "started from": PurePath(config["init_from"]).name or "scratch",  # where it lies here tells nobody else
        "last training loss": metric(found.last("train/loss") or float("nan")),
        "energy": f"{metric(emissions.energy_kwh)} kWh, {metric(emissions.emissions_kg)} kg CO2eq; {emissions.scope}"
        if emissions.segments
        else "not measured",
    }
