"""Weights in and out: round trips of every system and head, and what is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from runs import CASES, LABELS, changed, make_run, params_of, tokenizer_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sampling import sampled

import jaxformer
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.interop import export_run, import_run
from jaxformer.interop.configs import find_layout
from jaxformer.interop.layouts import pieces, standing
from jaxformer.interop.tables import LAYOUTS
from jaxformer.runs.loading import bind, stored_run
from jaxformer.runs.record import compare_with_base
from jaxformer.trees import flatten

CLASSES = {
    "transformer": "MarianMTModel", "gpt": "OpenAIGPTLMHeadModel", "gpt_label": "OpenAIGPTForSequenceClassification",
    "bert": "BertForPreTraining", "bert_masked": "BertForMaskedLM", "bert_label": "BertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel", "gpt2_label": "GPT2ForSequenceClassification", "distilbert": "DistilBertForMaskedLM",
    "distilbert_label": "DistilBertForSequenceClassification", "bart": "BartForConditionalGeneration",
    "bart_label": "BartForSequenceClassification", "t5": "T5ForConditionalGeneration",
    "t5_label": "T5ForSequenceClassification", "t5_1_1": "T5ForConditionalGeneration",
    "t5_1_1_label": "T5ForSequenceClassification", "gpt3": "GPT2LMHeadModel",
    "bert_classes": "BertForSequenceClassification", "bert_number": "BertForSequenceClassification",
    "bert_choices": "BertForMultipleChoice", "bert_tags": "BertForTokenClassification",
    "bert_span": "BertForQuestionAnswering", "distilbert_choices": "DistilBertForMultipleChoice",
    "distilbert_tags": "DistilBertForTokenClassification", "distilbert_span": "DistilBertForQuestionAnswering",
    "gpt_choices": "OpenAIGPTDoubleHeadsModel", "gpt2_number": "GPT2ForSequenceClassification",
    "gpt2_choices": "GPT2DoubleHeadsModel", "gpt2_tags": "GPT2ForTokenClassification",
    "gpt2_span": "GPT2ForQuestionAnswering", "bart_classes": "BartForSequenceClassification",
    "bart_span": "BartForQuestionAnswering", "t5_span": "T5ForQuestionAnswering",
}  # fmt: skip


# Every day each system once and each kind of head once; in CI every system with a head. Their own classes load every
# export in test_live_reference.py.
DAILY = (
    "transformer", "gpt", "gpt_label", "bert", "bert_label", "gpt2", "distilbert", "bart", "t5", "t5_1_1",
    "bert_classes", "bert_number", "bert_choices", "bert_tags", "bert_span",
)  # fmt: skip
SAMPLED = sampled(CASES, lambda name: (CASES[name][0], "task" in CASES[name][3]), daily=DAILY)


@pytest.mark.parametrize("name", SAMPLED)
def test_import_of_an_export_is_the_identity(name: str, exported: Any, tmp_path: Path) -> None:
    run, out, class_name = exported(name)
    assert class_name == CLASSES[name] == json.loads((out / "config.json").read_text())["architectures"][0]
    import_run(str(out), tmp_path / "back")
    ours, theirs = params_of(run), params_of(tmp_path / "back")
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert np.array_equal(ours[path], theirs[path]), path
    before, after = stored_run(run), stored_run(tmp_path / "back")
    slots = {"vocab_multiple", "initialization", "attention_dropout", "attention_output_dropout", "hidden_dropout"}
    kept = {key: value for key, value in vars(before.model.config).items() if key not in slots}
    assert kept == {key: vars(after.model.config)[key] for key in kept}
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint and after.labels == before.labels
    assert after.config.to_dict().get("task") == before.config.to_dict().get("task")
    assert after.model.heads == before.model.heads
    again = export_run(tmp_path / "back", tmp_path / "again")
    assert again == class_name
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_fused_and_transposed_kernels_are_where_the_reference_has_them(exported: Any) -> None:
    run, out, _ = exported("gpt2")
    ours, theirs = params_of(run), load_file(out / "model.safetensors")
    for third, part in enumerate(("query", "key", "value")):
        columns = slice(16 * third, 16 * third + 16)
        kernel = theirs["transformer.h.1.attn.c_attn.weight"][:, columns]
        assert np.array_equal(kernel, ours[f"decoder/layers/attention/{part}/kernel"][1])
        bias = theirs["transformer.h.1.attn.c_attn.bias"][columns]
        assert np.array_equal(bias, ours[f"decoder/layers/attention/{part}/bias"][1])
    run, out, _ = exported("t5_1_1")
    ours, theirs = params_of(run), load_file(out / "model.safetensors")
    assert np.array_equal(theirs["lm_head.weight"].T, ours["vocabulary/kernel"])
    assert not np.array_equal(theirs["lm_head.weight"], theirs["shared.weight"])
    assert np.array_equal(theirs["decoder.block.2.layer.2.DenseReluDense.wi_1.weight"].T,
                          ours["decoder/layers/feed_forward/gate/kernel"][2])  # fmt: skip
    with safe_open(out / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", ["bert", "t5_1_1"])
def test_rows_beyond_the_vocabulary_stay_here(name: str, tmp_path: Path) -> None:
    run = make_run(name, tmp_path / "run", vocab_multiple=64)
    size = tokenizer_of(CASES[name][1]).vocab_size
    export_run(run, tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    rows = {array.shape[0] for array in tensors.values()}
    assert size in rows and -(-size // 64) * 64 not in rows
    import_run(str(tmp_path / "hf"), tmp_path / "back")
    ours, theirs = params_of(run), params_of(tmp_path / "back")
    assert np.array_equal(theirs["embedding/tokens"], ours["embedding/tokens"][:size])
    for path in theirs.keys() & {"vocabulary/kernel", "vocabulary/bias"}:
        assert np.array_equal(theirs[path], ours[path][..., :size])


def test_an_imported_run_is_a_run(exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """load, generate, evaluate and init_from take it; to go on training it is refused."""
    _, out, _ = exported("gpt2")
    run = tmp_path / "gpt2"
    assert main(["import", str(out), f"--workdir={run}"]) == 0
    assert "11,576 parameters" in capsys.readouterr().out
    loaded = jaxformer.load(run)
    assert loaded.step == 0 and loaded.model.config.max_length == 64
    assert main(["generate", f"--workdir={run}", "--max-new-tokens=4", "Return the"]) == 0
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Text number {n} says that item {n} is in the queue." for n in range(60)))
    data = ["--config.data.name=text", f"--config.data.path={text}"]
    assert main(["evaluate", f"--workdir={run}", *data, "--json"]) == 0
    loss = json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]
    assert 0 < loss < 100

    config = json.loads((run / "config.json").read_text())["config"]
    sizes = [f"--config.model.{key}={config['model'][key]}" for key in ("d_model", "d_ff", "num_heads", "head_dim")]
    sizes += [f"--config.model.{key}={config['model'][key]}" for key in ("num_layers", "max_length", "vocab_size")]
    slots = ["--config.model.norm_placement=pre", "--config.model.initialization=gpt2"]
    command = ["train", "--config=gpt:smoke", *data, *sizes, *slots, "--config.objective.sequence_length=32"]
    command += ["--config.training.num_steps=2", "--config.optimizer.warmup_steps=1", "--config.training.batch_size=8"]
    command += ["--config.sharding.data=1", "--config.evaluation.max_examples=8"]
    workdir = tmp_path / "tuned"
    assert main([*command, f"--config.init_from={run}", f"--workdir={workdir}", "--quiet"]) == 0
    assert not np.array_equal(params_of(workdir)["embedding/tokens"], params_of(run)["embedding/tokens"])
    capsys.readouterr()
    assert main(["train", "--config=gpt:smoke", f"--workdir={run}", "--allow-config-change"]) == 2
    assert f"start from them with --config.init_from={run}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    sampled(
        ["bert", "bart", "t5", "distilbert_label", "bart_label", "gpt_label"],
        path=lambda name: "a label" if name.endswith("_label") else name,
        daily=("bert", "bart", "t5", "gpt_label"),
    ),
)
def test_imported_runs_of_every_family_are_evaluated(name: str, exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported(name)
    if name == "bart":  # as others' models come, without a task of ours
        out = changed(out, tmp_path / "hf", config={"jaxformer": None})
    import_run(str(out), tmp_path / "run")
    rows = [{"text": f"Item {n} of the queue. It waits for the lock.", "label": LABELS[n % 3]} for n in range(60)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"--config.data.path={data}", "--config.data.name=json_lines", "--config.training.batch_size=8"]
    if name == "bart":  # without a mask there is no denoising: it is judged by how it writes the label
        overrides += ["--config.objective.source_field=text", "--config.objective.target_field=label"]
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", *overrides]) == 0
    (path,) = (tmp_path / "run" / "results").glob("evaluate-validation-data-*.json")
    result = json.loads(path.read_text())
    assert result["metrics"]["loss"] > 0 and result["data"][0]["rows"] == 60


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "plain"])
def test_a_continuation_joins_its_prompt_as_one_text(kind: str, exported: Any) -> None:
    words = tokenizer_of(kind)
    run = dataclasses.replace(jaxformer.load(exported("gpt2")[0]), tokenizer=words)
    ids = words.encode("the thread may wait until the lock")
    for cut in range(1, len(ids)):
        assert words.decode(ids[:cut]) + run.continuation(ids[:cut], ids[cut:]) == words.decode(ids)


def test_a_run_binds_the_token_that_its_decoder_starts_from(exported: Any) -> None:
    for name, role in (("bart", "end"), ("bart_label", "end"), ("t5", "pad"), ("transformer", "pad")):
        run = stored_run(exported(name)[0])
        words = bind(run.config, run.tokenizer, run.labels).vocabulary
        assert words.decoder_start == run.tokenizer.vocabulary.id(role), name


def test_what_init_from_takes_over_is_compared(exported: Any) -> None:
    run, _, _ = exported("bert_label")
    config = stored_run(run).config
    same = dataclasses.replace(config, init_from=str(run))
    heads = ["row_heads/label/kernel"]
    assert compare_with_base(same, LABELS, heads) == []
    changed_slot = dataclasses.replace(
        same, model=dataclasses.replace(config.model, activation="gelu_tanh", dropout=0.3)
    )
    assert compare_with_base(changed_slot, LABELS, heads) == [
        f"model.activation is 'gelu_tanh' here and 'gelu' in {run}"
    ]
    assert compare_with_base(same, LABELS[::-1], ["row_heads/pooler/kernel"]) == []
    with pytest.raises(UserError, match="knows the labels concurrency, data, files, the data has files, data"):
        compare_with_base(same, LABELS[::-1], heads)


def test_labels_in_another_order_are_told_apart(exported: Any, tmp_path: Path) -> None:
    """Imported weights number the labels as they were trained, the data by their names."""
    _, out, _ = exported("bert_label")
    import_run(str(out), tmp_path / "ours")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    order = [2, 0, 1]
    config = json.loads((out / "config.json").read_text())
    config["id2label"] = {str(n): LABELS[k] for n, k in enumerate(order)}
    for file in out.iterdir():
        (theirs / file.name).write_bytes(file.read_bytes())
    (theirs / "config.json").write_text(json.dumps(config))
    tensors = load_file(out / "model.safetensors")
    tensors |= {f"classifier.{part}": tensors[f"classifier.{part}"][order] for part in ("weight", "bias")}
    save_file(tensors, theirs / "model.safetensors")
    import_run(str(theirs), tmp_path / "permuted")
    rows = [{"text": f"Item {n} waits for the lock.", "label": LABELS[n % 3]} for n in range(60)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for run in ("ours", "permuted"):
        command = ["evaluate", f"--workdir={tmp_path / run}", "--config.data.name=json_lines"]
        assert main([*command, f"--config.data.path={data}", "--config.training.batch_size=8"]) == 0
        (path,) = (tmp_path / run / "results").glob("evaluate-*.json")
        found.append(json.loads(path.read_text())["metrics"])
    assert found[0] == pytest.approx(found[1])


def test_shards_and_their_index(exported: Any, tmp_path: Path) -> None:
    run, whole, _ = exported("bert")
    export_run(run, tmp_path / "hf", shard_bytes=20_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "hf").glob("model*.safetensors"))
    assert len(files) == 2 and files[0] == "model-00001-of-00002.safetensors"
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in load_file(whole / "model.safetensors").values())
    assert set(index["weight_map"].values()) == set(files)
    import_run(str(tmp_path / "hf"), tmp_path / "back")
    ours, theirs = params_of(run), params_of(tmp_path / "back")
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    (tmp_path / "hf" / files[1]).unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors"):
        import_run(str(tmp_path / "hf"), tmp_path / "again")


def test_half_precision_becomes_single(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("t5")
    folder = tmp_path / "hf"
    folder.mkdir()
    for file in out.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: a.astype(ml_dtypes.bfloat16) for name, a in load_file(out / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    import_run(str(folder), tmp_path / "run")
    found = params_of(tmp_path / "run")
    assert np.array_equal(found["embedding/tokens"], tensors["shared.weight"].astype(np.float32))
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}


def test_names_of_older_files_are_understood(exported: Any, tmp_path: Path) -> None:
    run, out, _ = exported("bert")
    old: dict[str, Any] = {}
    for name, array in load_file(out / "model.safetensors").items():
        old[name] = None
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[name] = array
    old["bert.embeddings.position_ids"] = np.arange(64)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    import_run(str(changed(out, tmp_path / "old", tensors=old)), tmp_path / "run")
    ours, theirs = params_of(run), params_of(tmp_path / "run")
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)

    run, out, _ = exported("gpt2")
    bare = {name.removeprefix("transformer."): array for name, array in load_file(out / "model.safetensors").items()}
    bare |= dict.fromkeys(load_file(out / "model.safetensors"))
    bare |= {f"h.{n}.attn.bias": np.ones((1, 1, 64, 64), np.float32) for n in range(3)}
    import_run(str(changed(out, tmp_path / "bare", tensors=bare)), tmp_path / "bare-run")
    ours, theirs = params_of(run), params_of(tmp_path / "bare-run")
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_copies_may_stand_for_what_they_are_copies_of(exported: Any, tmp_path: Path) -> None:
    """Some savers keep one name of several that share their memory, and not always the first."""
    for case, name, copy in (
        ("gpt2", "transformer.wte.weight", "lm_head.weight"),
        ("bart", "model.shared.weight", "model.decoder.embed_tokens.weight"),
        ("t5", "shared.weight", "lm_head.weight"),
        ("t5_1_1", "shared.weight", "encoder.embed_tokens.weight"),
    ):
        run, out, _ = exported(case)
        tensors = load_file(out / "model.safetensors")
        folder = changed(out, tmp_path / case, tensors={name: None, copy: tensors[name]})
        import_run(str(folder), tmp_path / f"{case}-run")
        ours, theirs = params_of(run), params_of(tmp_path / f"{case}-run")
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_a_pooler_that_nothing_reads_is_left_out(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert_masked")
    pooler = {
        "bert.pooler.dense.weight": np.ones((16, 16), np.float32),
        "bert.pooler.dense.bias": np.ones(16, np.float32),
    }
    import_run(str(changed(out, tmp_path / "hf", tensors=pooler)), tmp_path / "run")
    assert "row_heads/pooler/kernel" not in params_of(tmp_path / "run")


def test_a_special_token_without_a_row_is_left_out(exported: Any, tmp_path: Path) -> None:
    """bart-large-cnn has 50,264 rows, and its tokenizer <mask> as id 50,264."""
    _, out, _ = exported("bart")
    size = tokenizer_of("plain").vocab_size
    folder = changed(out, tmp_path / "hf")
    state = json.loads((folder / "tokenizer.json").read_text())
    mask = {"id": size, "content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False}
    state["added_tokens"].append(mask | {"normalized": False, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(state))
    import_run(str(folder), tmp_path / "run")
    words = stored_run(tmp_path / "run").tokenizer
    assert words.vocab_size == size and "mask" not in words.vocabulary.special
    assert words.encode("the queue", special=True).tolist() == tokenizer_of("plain").encode("the queue", True).tolist()


def test_a_bart_with_a_mask_denoises(exported: Any, tmp_path: Path) -> None:
    size = tokenizer_of("plain").vocab_size
    export_run(make_run("bart", tmp_path / "bart", vocab_size=size + 1), tmp_path / "ours")
    changed(tmp_path / "ours", tmp_path / "hf", config={"jaxformer": None})
    state = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    mask = {"id": size, "content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False}
    state["added_tokens"].append(mask | {"normalized": False, "special": True})
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(state))
    import_run(str(tmp_path / "hf"), tmp_path / "run")
    assert stored_run(tmp_path / "run").config.selected["objective"] == "denoising"
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Text number {n} says that item {n} is in the queue." for n in range(60)))
    data = ["--config.data.name=text", f"--config.data.path={text}", "--config.training.batch_size=8"]
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", *data]) == 0


def test_each_tensor_comes_from_the_file_that_the_index_gives(exported: Any, tmp_path: Path) -> None:
    run, out, _ = exported("gpt2")
    export_run(run, tmp_path / "hf", shard_bytes=20_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    stale = {name: np.zeros_like(array) for name, array in load_file(tmp_path / "hf" / first).items()}
    save_file(stale | load_file(tmp_path / "hf" / last), tmp_path / "hf" / last)
    import_run(str(tmp_path / "hf"), tmp_path / "run")
    ours, theirs = params_of(run), params_of(tmp_path / "run")
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_a_hugging_face_folder_is_no_run(exported: Any, capsys: pytest.CaptureFixture) -> None:
    _, out, _ = exported("gpt2")
    before = sorted(path.name for path in out.iterdir())
    for command in (["evaluate"], ["generate", "text"], ["export", "elsewhere"]):
        assert main([command[0], f"--workdir={out}", *command[1:]]) == 2
        assert "is a folder in Hugging Face format; `jaxformer import` makes a run of it" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == before


def test_a_trained_model_is_not_changed_by_an_override(exported: Any, capsys: pytest.CaptureFixture) -> None:
    run, _, _ = exported("gpt2")
    assert main(["evaluate", f"--workdir={run}", "--config.model.activation=relu"]) == 2
    assert "a trained model cannot be changed" in capsys.readouterr().err


def test_trained_logit_biases_are_kept(exported: Any, tmp_path: Path) -> None:
    """Marian's models have them, in a buffer that is zero for BART."""
    _, out, _ = exported("transformer")
    bias = np.linspace(-1, 1, tokenizer_of("plain").vocab_size, dtype=np.float32)[None]
    folder = changed(out, tmp_path / "hf", tensors={"final_logits_bias": bias})
    import_run(str(folder), tmp_path / "run")
    assert stored_run(tmp_path / "run").model.config.output_head == "biased"
    assert np.array_equal(params_of(tmp_path / "run")["vocabulary/bias"], bias[0])
    export_run(tmp_path / "run", tmp_path / "back")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "back", folder))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_card_and_the_tokenizer_files(exported: Any) -> None:
    _, out, _ = exported("bert_label")
    card = (out / "README.md").read_text()
    assert "BertForSequenceClassification.from_pretrained" in card and "0: concurrency, 1: data, 2: files" in card
    assert "None" not in card and "nan" not in card
    words = json.loads((out / "tokenizer_config.json").read_text())
    assert words["cls_token"] == "[CLS]" and words["pad_token"] == "[PAD]" and words["model_max_length"] == 64
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "concurrency", "1": "data", "2": "files"}
    assert config["pad_token_id"] == tokenizer_of("wordpiece").vocabulary.id("pad")


@pytest.mark.parametrize("name", SAMPLED)
def test_every_parameter_has_a_place_of_its_own(name: str, exported: Any) -> None:
    run, _, _ = exported(name)
    model = stored_run(run).model
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(model.shapes).items()}
    classes = standing(model)
    layout = find_layout(model.config, classes)
    places = [(piece.name, piece.part) for piece in pieces(layout, model.config, shapes, classes)]
    assert len(places) == len(set(places)) >= len(shapes)


# Memory

_PEAK = """
import sys
from pathlib import Path
from jaxformer.interop import export_run, import_run

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

def work(run, root):
    if what == "export":
        export_run(run, root / "hf")
    else:
        import_run(str(root / "hf"), root / "back")

what, small, large = sys.argv[1], *map(Path, sys.argv[2:])
work(small / "run", small)  # what the first of each costs anyway
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = status("VmRSS")
work(large / "run", large)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak")
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_memory_stays_near_the_weights(name: str, tmp_path: Path) -> None:
    """At most 1.3 times the weights and one tensor: the largest is a stack of feed-forward kernels."""
    sizes = {"d_model": 512, "d_ff": 2048, "num_heads": 8, "head_dim": 64, "num_layers": 12}
    make_run(name, tmp_path / "small" / "run"), make_run(name, tmp_path / "large" / "run", **sizes)
    for what in ("export", "import"):
        code = [sys.executable, "-c", _PEAK, what, str(tmp_path / "small"), str(tmp_path / "large")]
        done = subprocess.run(code, capture_output=True, text=True, check=True)
        weights = sum(array.nbytes for array in load_file(tmp_path / "large" / "hf" / "model.safetensors").values())
        added, tensor = int(done.stdout), 4 * 12 * 512 * 2048
        assert added <= 1.3 * weights + tensor, f"{what} adds {added / weights:.2f} times the weights"


def test_cases_cover_every_class() -> None:
    assert {one.name for layout in LAYOUTS.values() for one in layout.classes.values()} == set(CLASSES.values())
