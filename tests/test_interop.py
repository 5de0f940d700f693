"""Weights in and out: round trips of every system and head, and what is refused."""

import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from runs import CASES, LABELS, make_run, tokenizer_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxformer
from jaxformer.checkpoint import read_params_in_groups, stored_shapes
from jaxformer.cli import main
from jaxformer.errors import UserError
from jaxformer.interop import export_run, import_run
from jaxformer.interop.configs import find_layout
from jaxformer.interop.layouts import LAYOUTS, pieces
from jaxformer.interop.weights import TensorWriter, stored_tensors
from jaxformer.parameters import flatten
from jaxformer.run import compare_with_base, open_run


def params_of(run: Path) -> dict[str, np.ndarray]:
    ((_, arrays),) = read_params_in_groups(run, [tuple(stored_shapes(run))])
    return arrays


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, str]]:
    """Return a function that gives (run, export of it, class) of a case, made once."""
    root, made = tmp_path_factory.mktemp("interop"), {}

    def get(name: str) -> tuple[Path, Path, str]:
        if name not in made:
            run, out = make_run(name, root / name / "run"), root / name / "hf"
            made[name] = run, out, export_run(run, out)
        return made[name]

    return get


CLASSES = {
    "transformer": "MarianMTModel", "gpt": "OpenAIGPTLMHeadModel", "gpt_label": "OpenAIGPTForSequenceClassification",
    "bert": "BertForPreTraining", "bert_masked": "BertForMaskedLM", "bert_label": "BertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel", "gpt2_label": "GPT2ForSequenceClassification", "distilbert": "DistilBertForMaskedLM",
    "distilbert_label": "DistilBertForSequenceClassification", "bart": "BartForConditionalGeneration",
    "bart_label": "BartForSequenceClassification", "t5": "T5ForConditionalGeneration",
    "t5_label": "T5ForSequenceClassification", "t5_1_1": "T5ForConditionalGeneration",
    "t5_1_1_label": "T5ForSequenceClassification", "gpt3": "GPT2LMHeadModel",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_import_of_an_export_is_the_identity(name: str, exported: Any, tmp_path: Path) -> None:
    run, out, class_name = exported(name)
    assert class_name == CLASSES[name] == json.loads((out / "config.json").read_text())["architectures"][0]
    import_run(str(out), tmp_path / "back")
    ours, theirs = params_of(run), params_of(tmp_path / "back")
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert np.array_equal(ours[path], theirs[path]), path
    before, after = open_run(run), open_run(tmp_path / "back")
    slots = {"vocab_multiple", "initialization", "attention_dropout", "attention_output_dropout", "hidden_dropout"}
    kept = {key: value for key, value in vars(before.model.config).items() if key not in slots}
    assert kept == {key: vars(after.model.config)[key] for key in kept}
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint and after.labels == (
        before.labels if before.model.heads else ()
    )
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
    command += ["--config.training.unroll_layers=1", "--config.evaluation.max_examples=8"]
    workdir = tmp_path / "tuned"
    assert main([*command, f"--config.init_from={run}", f"--workdir={workdir}", "--quiet"]) == 0
    assert not np.array_equal(params_of(workdir)["embedding/tokens"], params_of(run)["embedding/tokens"])
    assert main(["train", "--config=gpt:smoke", f"--workdir={run}"]) == 2


@pytest.mark.parametrize("name", ["bert", "bart", "t5", "distilbert_label", "bart_label", "gpt_label"])
def test_imported_runs_of_every_family_are_evaluated(name: str, exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported(name)
    import_run(str(out), tmp_path / "run")
    rows = [{"text": f"Item {n} of the queue. It waits for the lock.", "label": LABELS[n % 3]} for n in range(60)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"--config.data.path={data}", "--config.data.name=json_lines", "--config.training.batch_size=8"]
    if name == "bart":  # it writes the labels, which are long in so small a vocabulary
        overrides.append("--config.task.target_length=16")
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", *overrides]) == 0
    result = json.loads((tmp_path / "run" / "results" / "evaluate-validation.json").read_text())
    assert result["metrics"]["loss"] > 0


def test_what_init_from_takes_over_is_compared(exported: Any) -> None:
    run, _, _ = exported("bert_label")
    config = open_run(run).config
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
        found.append(json.loads((tmp_path / run / "results" / "evaluate-validation.json").read_text())["metrics"])
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


# What older releases and other classes write beside the parameters, or leave out.


def changed(out: Path, folder: Path, **changes: Any) -> Path:
    """Copy an export; `tensors` changes its weights, `config` its config.json, None deletes."""
    folder.mkdir()
    for file in out.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, update in changes.items():
        if name == "tensors":
            content = load_file(folder / "model.safetensors") | update
            save_file({key: value for key, value in content.items() if value is not None}, folder / "model.safetensors")
        else:
            content = json.loads((folder / "config.json").read_text()) | update
            kept = {key: value for key, value in content.items() if value is not None}
            (folder / "config.json").write_text(json.dumps(kept))
    return folder


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
    words = open_run(tmp_path / "run").tokenizer
    assert words.vocab_size == size and "mask" not in words.vocabulary.special
    assert words.encode("the queue", special=True).tolist() == tokenizer_of("plain").encode("the queue", True).tolist()


def test_what_tells_no_single_label_is_refused(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert_label")
    many = changed(out, tmp_path / "many", config={"problem_type": "multi_label_classification"})
    with pytest.raises(UserError, match="multi_label_classification cannot be imported"):
        import_run(str(many), tmp_path / "run")
    head = {"classifier.weight": np.ones((1, 16), np.float32), "classifier.bias": np.ones(1, np.float32)}
    with pytest.raises(UserError, match=r"regression \(one output\) cannot be imported"):
        import_run(str(changed(out, tmp_path / "one", tensors=head)), tmp_path / "run")


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
    assert open_run(tmp_path / "run").model.config.output_head == "biased"
    assert np.array_equal(params_of(tmp_path / "run")["vocabulary/bias"], bias[0])
    export_run(tmp_path / "run", tmp_path / "back")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "back", folder))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def overlong_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def overlapping(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor in sight")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "tf_model.h5").write_bytes(b"")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def torn_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def another_tokenizer(folder: Path) -> None:
    tokenizer_of("bpe").save(folder / "tokenizer.json")


SIZE = tokenizer_of("wordpiece").vocab_size
WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, "has no config.json"),
        (torn_config, "config.json is damaged"),
        ({"config": {"model_type": None}}, "names no model_type; there are bert, distilbert"),
        ({"config": {"model_type": "bertt"}}, "'bertt' cannot be imported; did you mean 'bert'"),
        ({"config": {"hidden_size": None}}, "has no hidden_size"),
        ({"config": {"hidden_size": "wide"}}, "hidden_size = 'wide' is not a whole number"),
        ({"config": {"hidden_size": 15}}, "15 dimensions cannot be shared by 2 heads"),
        ({"config": {"hidden_act": "mish"}}, "activation 'mish' is not one of gelu"),
        ({"config": {"position_embedding_type": "relative_key"}}, "relative_key' is not supported for bert"),
        ({"config": {"num_hidden_layers": 2}}, "hold more than the model of config.json: encoder.layer.2"),
        ({"config": {"num_hidden_layers": 4}}, "the weights lack encoder.layer.3"),
        ({"config": {"intermediate_size": 25}}, r"has shape \[24\], the model's is \[25\]"),
        ({"config": {"hidden_size": float("inf")}}, "hidden_size = inf is not a whole number"),
        ({"config": {"num_attention_heads": 0}}, "16 dimensions cannot be shared by 0 heads"),
        ({"config": {"num_hidden_layers": 200_000}}, "200000 layers, but the weights are"),
        ({"config": {"layer_norm_eps": -1}}, "model.norm_epsilon: -1.0 must be 0 or more"),
        ({"config": {"architectures": ["BertForTokenClassification"]}}, "ForTokenClassification cannot be imported"),
        ({"tensors": {"bert.encoder.layer.1.output.dense.bias": None}}, "lack encoder.layer.1.output.dense.bias"),
        ({"tensors": {"bert.new.weight": np.ones(3, np.float32)}}, "hold more than .*: new.weight"),
        ({"tensors": {WORDS: np.ones((3, 16), np.float32)}}, "twice, with and without a prefix"),
        ({"tensors": {f"bert.{WORDS}": np.ones((SIZE, 16), np.int32)}}, "dtype I32; weights are F32, F16, BF16, F64"),
        ({"tensors": {"cls.predictions.decoder.weight": np.ones((SIZE, 16), np.float32)}}, "which bert shares with it"),
        (truncated, "damaged or unfinished"),
        (overlong_header, "damaged or unfinished"),
        (overlapping, "damaged or unfinished"),
        (garbage, "damaged or unfinished"),
        (no_weights, "has no model.safetensors; tf_model.h5 cannot be read"),
        (no_tokenizer, "tokenizer"),
        (another_tokenizer, "but the tokenizer has 2[0-9][0-9] ids; use the tokenizer that belongs to the model"),
    ],
)  # fmt: skip
def test_bad_folders_are_refused_in_one_line(
    damage: Any, message: str, exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, out, _ = exported("bert")
    folder = changed(out, tmp_path / "hf", **(damage if isinstance(damage, dict) else {}))
    if callable(damage):
        damage(folder)
    assert main(["import", str(folder), f"--workdir={tmp_path / 'run'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    with pytest.raises(UserError, match=message):
        import_run(str(folder), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_other_classes_and_stacks_are_refused(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert")
    heads = {name: None for name in load_file(out / "model.safetensors") if name.startswith("cls.")}
    with pytest.raises(UserError, match="BertForPreTraining have no head that can be imported; supported are BertForP"):
        import_run(str(changed(out, tmp_path / "bare", tensors=heads)), tmp_path / "run")
    _, out, _ = exported("bart")
    with pytest.raises(UserError, match="encoder_layers 3, decoder_layers 6: stacks of unequal sizes"):
        import_run(str(changed(out, tmp_path / "uneven", config={"decoder_layers": 6})), tmp_path / "run")
    with pytest.raises(UserError, match="decoder_start_token_id 5 is neither padding nor end"):
        import_run(str(changed(out, tmp_path / "start", config={"decoder_start_token_id": 5})), tmp_path / "run")


def test_a_name_of_the_hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to the hub\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        UserError, match="no folder org/model, and the hub does not give it: ConnectionError: no route to the hub$"
    ):
        import_run("org/model", tmp_path / "run")
    with pytest.raises(UserError, match="./model is no folder"):
        import_run("./model", tmp_path / "run")


def test_a_hub_name_is_fetched_without_unsafe_files(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import huggingface_hub

    _, out, _ = exported("gpt2")
    asked: dict[str, Any] = {}

    def download(name: str, **kwargs: Any) -> str:
        asked.update(kwargs, name=name)
        return str(out)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    import_run("org/model", tmp_path / "run", revision="v2")
    assert asked["name"] == "org/model" and asked["revision"] == "v2"
    assert not any(pattern.endswith((".bin", ".pkl", ".py")) for pattern in asked["allow_patterns"])


def test_nothing_is_overwritten(exported: Any, tmp_path: Path) -> None:
    run, out, _ = exported("gpt2")
    with pytest.raises(UserError, match="--workdir: .* exists; choose another"):
        import_run(str(out), run)
    with pytest.raises(UserError, match="OUT: .* exists; choose another"):
        export_run(run, out)


def test_places_where_nothing_can_be_put(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out, _ = exported("gpt2")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir: .*/file is a file; choose another folder"):
        import_run(str(out), tmp_path / "file" / "run")
    with pytest.raises(UserError, match="OUT: .*/file is a file; choose another folder"):
        export_run(run, tmp_path / "file" / "hf")
    with pytest.raises(UserError, match="lack"):
        broken = changed(out, tmp_path / "hf", tensors={"transformer.wte.weight": None})
        import_run(str(broken), tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_run(str(out), Path("."))
    assert (tmp_path / "here" / "config.json").exists()
    with pytest.raises(UserError, match="--revision: .* is a folder that is here"):
        import_run(str(out), tmp_path / "other", revision="main")


def test_a_full_disk_leaves_nothing(exported: Any, tmp_path: Path) -> None:
    run, out, _ = exported("gpt2")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2);"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from jaxformer.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    exports, imports = ["export", f"--workdir={run}", "hf"], ["import", str(out), "--workdir=run"]
    for limit, command in (("20000", exports), ("4000", imports)):
        words = [sys.executable, "-c", code, limit, *command]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "exceed the size limit" in done.stderr.splitlines()[-1]
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "slots", "message"),
    [
        ("gpt3", {"attention_pattern": "dense_first"}, "gpt2, but model.attention_pattern is 'dense_first'"),
        ("transformer", {"biases": "feed_forward"}, "nearest is marian, but model.biases is 'feed_forward', not 'all'"),
        ("transformer", {"position": "sinusoidal_tensor2tensor"}, "but model.position is 'sinusoidal_tensor2tensor'"),
        ("bert", {"norm_placement": "pre"}, "nearest is bert, but model.norm_placement is 'pre', not 'post'"),
        ("gpt2", {"position": "rotary"}, "model.position is 'rotary', not 'learned'"),
        ("gpt", {"d_ff": 24}, "nearest is openai-gpt, but model.d_ff is 24, not 64"),
        ("t5", {"logit_scale": "none"}, "t5, but model.logit_scale is 'none', not 'inverse_sqrt_d_model'"),
        ("gpt2_label", {"head_bias": True}, "gpt2, but model.head_bias is True, not False"),
        ("t5", {"gated": True, "activation": "gelu"}, "no gated activation 'gelu'"),
    ],
)  # fmt: skip
def test_what_no_class_computes_is_not_exported(name: str, slots: dict, message: str, tmp_path: Path) -> None:
    run = make_run(name, tmp_path / "run", **slots)
    with pytest.raises(UserError, match=message):
        export_run(run, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


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


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_place_of_its_own(name: str, exported: Any) -> None:
    run, _, _ = exported(name)
    model = open_run(run).model
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(model.shapes).items()}
    classes = (*(("tokens",) if model.predicts_tokens else ()), *(head for head, _ in model.heads))
    places = [(piece.name, piece.third) for piece in pieces(find_layout(model.config, classes), model.config, shapes)]
    assert len(places) == len(set(places)) >= len(shapes)


# PyTorch's own files


class Storage:
    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count


def torch_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for torch while a pickle is written: only names go into the file."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*args: Any) -> None:
        raise AssertionError("nothing of a file is called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    for name in ("FloatStorage", "BFloat16Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def save_bin(path: Path, tensors: dict[str, np.ndarray], torch: Any, extra: Any = None, layout: Any = None) -> None:
    """Write what torch.save writes: a zip of a pickle and one file for each storage."""

    class Tensor:
        def __init__(self, storage: Storage, shape: tuple, stride: tuple) -> None:
            self.parts = (storage, *(layout or (0, shape, stride)), False, {})

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, self.parts

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return ("storage", getattr(torch, value.kind), value.key, "cpu", value.count)
            return None

    table: dict[str, Any] = {}
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, array) in enumerate(tensors.items()):
            kind = "FloatStorage" if array.dtype == np.float32 else "BFloat16Storage"
            archive.writestr(f"archive/data/{number}", array.tobytes())
            stride = tuple(step // array.itemsize for step in array.strides)
            table[name] = Tensor(Storage(kind, str(number), array.size), array.shape, stride)
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump(table | ({"extra": extra} if extra is not None else {}))


def test_pytorch_files_are_read_without_torch(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out, _ = exported("gpt2")
    folder = changed(out, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    tensors = load_file(out / "model.safetensors")
    with monkeypatch.context() as patch:
        save_bin(folder / "pytorch_model.bin", tensors, torch_modules(patch))
    assert "torch" not in sys.modules
    import_run(str(folder), tmp_path / "run")
    ours, theirs = params_of(run), params_of(tmp_path / "run")
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_a_hostile_pickle_runs_nothing(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, out, _ = exported("gpt2")
    folder = changed(out, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    with monkeypatch.context() as patch:
        save_bin(folder / "pytorch_model.bin", {}, torch_modules(patch), extra=Hostile())
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(folder), f"--workdir={tmp_path / 'run'}"]) == 2
    assert "asks for posix.system" in capsys.readouterr().err.replace("nt.system", "posix.system")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def rewritten(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Put other data into the storage of a file that `save_bin` wrote."""
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/data.pkl", pickled)


@pytest.fixture
def torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes a file of one tensor "a" of four numbers, with another shape or stride."""

    def make(shape: Any = (4,), stride: Any = (1,), offset: Any = 0) -> Path:
        with monkeypatch.context() as patch:
            torch = torch_modules(patch)
            path = tmp_path / "pytorch_model.bin"
            save_bin(path, {"a": np.arange(4, dtype=np.float32)}, torch, layout=(offset, shape, stride))
        return path

    return make


@pytest.mark.parametrize(
    "layout",
    [
        {"shape": (5,)}, {"shape": (4,), "stride": (2,)}, {"shape": (4,), "stride": (-1,), "offset": 3},
        {"shape": (200_000, 200_000), "stride": (0, 0)}, {"shape": (4,), "offset": 1}, {"shape": (2,), "offset": -1},
        {"shape": (-1,)}, {"shape": (2, 2), "stride": (1,)}, {"shape": ("x",)}, {"shape": 4}, {"stride": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_tensor_beyond_its_storage_is_refused(layout: dict, torch_file: Any, tmp_path: Path) -> None:
    torch_file(**layout)
    with pytest.raises(UserError, match="damaged or unfinished"):
        stored_tensors(tmp_path)


def test_a_storage_that_is_not_what_it_says_is_refused(torch_file: Any, tmp_path: Path) -> None:
    whole = np.arange(4, dtype=np.float32).tobytes()
    assert stored_tensors(torch_file().parent)["a"].read().tolist() == [0, 1, 2, 3]
    rewritten(torch_file(), whole[:8])
    with pytest.raises(UserError, match="reaches beyond its storage"):
        stored_tensors(tmp_path)
    rewritten(torch_file(), bytes(2**16), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is packed, which torch.save never does"):
        stored_tensors(tmp_path)
    # The directory at the end of the file claims more than the entry holds.
    path = torch_file()
    content = path.read_bytes()
    place = content.index(b"PK\x01\x02")
    longer = struct.pack("<II", 1 << 20, 1 << 20)
    path.write_bytes(content[: place + 20] + longer + content[place + 28 :])
    with pytest.raises(UserError, match="damaged or unfinished"):
        for tensor in stored_tensors(tmp_path).values():
            tensor.read()


def test_shapes_are_taken_when_they_are_checked(tmp_path: Path, torch_file: Any) -> None:
    """A pickle may go on changing a list that it has handed over."""
    shape = [4]
    tensor = stored_tensors(torch_file(shape=shape).parent)["a"]
    assert tensor.shape == (4,) and isinstance(tensor.shape, tuple)


def test_the_writer_writes_what_the_library_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"b": rng.normal(size=(3, 5)), "a": rng.normal(size=(7,)), "empty": np.zeros((0, 4)), "c": np.array(2.0)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    writer = TensorWriter(tmp_path, {name: array.shape for name, array in arrays.items()})
    writer.write(reversed(arrays.items()))
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].shape == array.shape


# Memory

_PEAK = """
import sys
from pathlib import Path
from jaxformer.interop import export_run, import_run

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

small, large, root = map(Path, sys.argv[1:])
export_run(small, root / "warm")  # what the first of each costs anyway
import_run(str(root / "warm"), root / "warm-run")
for work in (lambda: export_run(large, root / "hf"), lambda: import_run(str(root / "hf"), root / "back")):
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    work()
    print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak")
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_memory_stays_near_the_weights(name: str, tmp_path: Path) -> None:
    """At most 1.3 times the weights and one tensor: the largest is a stack of feed-forward kernels."""
    sizes = {"d_model": 512, "d_ff": 2048, "num_heads": 8, "head_dim": 64, "num_layers": 12}
    small, large = make_run(name, tmp_path / "small"), make_run(name, tmp_path / "large", **sizes)
    code = [sys.executable, "-c", _PEAK, small, large, tmp_path]
    done = subprocess.run(list(map(str, code)), capture_output=True, text=True, check=True)
    weights = sum(array.nbytes for array in load_file(tmp_path / "hf" / "model.safetensors").values())
    tensor = 4 * 12 * 512 * 2048
    for what, added in zip(("export", "import"), map(int, done.stdout.split()), strict=True):
        assert added <= 1.3 * weights + tensor, f"{what} adds {added / weights:.2f} times the weights"


def test_cases_cover_every_class() -> None:
    assert {name for layout in LAYOUTS.values() for name, _ in layout.classes.values()} == set(CLASSES.values())
