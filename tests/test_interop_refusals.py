"""What import and export refuse, in one line and without leaving anything behind."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import changed, make_run, tokenizer_of
from safetensors.numpy import load_file

from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.interop import export_run, import_run


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
        ({"config": {"hidden_act": "mish"}}, "activation: 'mish' is not one of gelu"),
        ({"config": {"position_embedding_type": "relative_key"}}, "relative_key' is not supported for bert"),
        ({"config": {"num_hidden_layers": 2}}, "hold more than the model of config.json: encoder.layer.2"),
        ({"config": {"num_hidden_layers": 4}}, "the weights lack encoder.layer.3"),
        ({"config": {"intermediate_size": 25}}, r"has shape \[24\], the model's is \[25\]"),
        ({"config": {"hidden_size": float("inf")}}, "hidden_size = inf is not a whole number"),
        ({"config": {"num_attention_heads": 0}}, "16 dimensions cannot be shared by 0 heads"),
        ({"config": {"num_hidden_layers": 200_000}}, "200000 layers, but the weights are"),
        ({"config": {"layer_norm_eps": -1}}, "model.norm_epsilon: -1.0 must be at least 0"),
        ({"config": {"architectures": ["BertForTokenClassification"]}}, "lack classifier, the head of BertForTok"),
        ({"config": {"architectures": ["BertForQuestions"]}}, "BertForQuestions cannot be imported; supported are"),
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


def test_a_tokenizer_of_another_model_is_told_by_its_ids(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("t5")
    folder = changed(out, tmp_path / "hf", config={"eos_token_id": 5})
    with pytest.raises(UserError, match="says eos_token_id 5, but the tokenizer's </s> is 1"):
        import_run(str(folder), tmp_path / "run")


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


def test_a_full_disk_leaves_nothing(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of files' sizes, which Python lets a process go beyond as it does a full disk: by an error."""
    run, out, _ = exported("gpt2")
    exports, imports = ["export", f"--workdir={run}", "hf"], ["import", str(out), "--workdir=run"]
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, command in ((20_000, exports), (4_000, imports)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            assert main(command) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "exceed the size limit" in capsys.readouterr().err.splitlines()[-1]
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
