"""Against the reference itself, live: needs torch and transformers, which `make test-reference` installs."""

import json
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; make test-reference installs it")
transformers = pytest.importorskip("transformers")

import jax.numpy as jnp  # noqa: E402
import make_reference  # noqa: E402
from runs import CASES, make_run, tokenizer_of  # noqa: E402

import jaxformer  # noqa: E402
from jaxformer.interop import export_run, import_run  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=make_reference.SYSTEMS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> comparison.Reference:
    folder = tmp_path_factory.mktemp(request.param)
    make_reference.write(request.param, folder, seed=1)
    return comparison.read(folder)


def test_logits_and_hidden_states(reference: comparison.Reference) -> None:
    assert all(value <= 1e-5 for value in comparison.output_errors(reference).values())


def test_the_gradient_of_every_parameter(reference: comparison.Reference) -> None:
    for path, (difference, norm, total) in comparison.gradient_errors(reference).items():
        assert difference <= max(1e-4 * norm, 1e-6 * total), path


def test_ten_steps_of_adamw(reference: comparison.Reference) -> None:
    np.testing.assert_allclose(comparison.losses(reference), reference.expected["losses"], rtol=0, atol=1e-3)


def auto_class(name: str) -> Any:
    """Return the Auto class through which a class is loaded."""
    kinds = {
        "LMHeadModel": "CausalLM", "ForMaskedLM": "MaskedLM", "ForPreTraining": "PreTraining",
        "ForConditionalGeneration": "Seq2SeqLM", "MTModel": "Seq2SeqLM",
        "ForSequenceClassification": "SequenceClassification",
    }  # fmt: skip
    kind = next(kind for suffix, kind in kinds.items() if name.endswith(suffix))
    return transformers.AutoModelForPreTraining if kind == "PreTraining" else getattr(
        transformers, f"AutoModelFor{kind}"
    )  # fmt: skip


def batch_for(run: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return two rows of random tokens, the second with padding behind it; the last real token is an end or none."""
    config, vocabulary = run.model.config, run.tokenizer.vocabulary

    def row(lengths: tuple[int, int], prefix: str) -> dict[str, np.ndarray]:
        real = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
        ids = rng.integers(10, config.vocab_size - 21, real.shape)
        if "end" in vocabulary.special:
            ids[np.arange(2), np.array(lengths) - 1] = vocabulary.id("end") if config.family != "decoder_only" else 11
        positions = np.where(real, np.arange(real.shape[1]), 0)
        ids = np.where(real, ids, vocabulary.id("pad"))
        return {f"{prefix}inputs": ids, f"{prefix}segment_ids": real.astype(int), f"{prefix}positions": positions}

    arrays = row((9, 6), "")
    if config.family == "encoder_decoder":
        arrays |= row((9, 6), "encoder_")
        if run.model.heads:  # the decoder reads what the encoder reads, one place later
            arrays["inputs"] = np.roll(arrays["encoder_inputs"], 1, axis=1)
            arrays["inputs"][:, 0] = vocabulary.id(config.decoder_start)
    if config.token_types:
        arrays["token_types"] = np.where(arrays["segment_ids"] > 0, np.arange(9) >= 4, 0)
    if run.model.heads and config.family != "encoder_only":
        arrays["label_positions"] = np.array([8, 5])
    return {key: array.astype(np.int32) for key, array in arrays.items()}


@pytest.mark.parametrize("name", CASES)
def test_their_classes_load_our_exports(name: str, tmp_path: Path) -> None:
    workdir, out = make_run(name, tmp_path / "run"), tmp_path / "hf"
    class_name = export_run(workdir, out)
    theirs, info = auto_class(class_name).from_pretrained(out, output_loading_info=True, attn_implementation="eager")
    assert type(theirs).__name__ == class_name
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    run = jaxformer.load(workdir)
    arrays = batch_for(run, np.random.default_rng(0))
    outputs = run.model.apply(run.params, {key: jnp.asarray(array) for key, array in arrays.items()})
    long = {key: torch.from_numpy(array).long() for key, array in arrays.items()}
    paired = run.model.config.family == "encoder_decoder"
    prefix = "encoder_" if paired else ""
    inputs = {"input_ids": long[f"{prefix}inputs"], "attention_mask": long[f"{prefix}segment_ids"]}
    if paired:
        inputs |= {"decoder_input_ids": long["inputs"], "decoder_attention_mask": long["segment_ids"]}
    if "token_types" in long:
        inputs["token_type_ids"] = long["token_types"]
    with torch.no_grad():
        found = theirs.eval()(**inputs)
    real = arrays["segment_ids"] > 0
    if "hidden" in outputs and "label" not in outputs:
        logits = found.prediction_logits if "prediction_logits" in found else found.logits
        ours = np.asarray(run.model.project(run.params, outputs["hidden"]))
        assert comparison.error(ours[real], logits.numpy()[real]) <= 1e-5
    for head, theirs_logits in (("label", "logits"), ("next_sentence", "seq_relationship_logits")):
        if head in outputs:
            assert comparison.error(outputs[head], found[theirs_logits].numpy()) <= 1e-5


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_their_tokenizer_reads_ours(kind: str, tmp_path: Path) -> None:
    case = {"bpe": "gpt2", "wordpiece": "bert", "unigram": "t5"}[kind]
    export_run(make_run(case, tmp_path / "run"), tmp_path / "hf")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), tokenizer_of(kind)
    for text in ("Return the number of items.", "A thread  may wait\n", "Überraschung", ""):
        assert theirs(text)["input_ids"] == ours.encode(text, special=True, reads="all").tolist()
    assert theirs.pad_token_id == ours.vocabulary.id("pad")


def test_v1_1_keeps_a_softmax_of_its_own(tmp_path: Path) -> None:
    """transformers 5 ties T5's softmax whatever config.json says, unless the weights in the file differ."""
    workdir = make_run("t5_1_1", tmp_path / "run")
    export_run(workdir, tmp_path / "hf")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert theirs.lm_head.weight.data_ptr() != theirs.shared.weight.data_ptr()
    kernel = np.asarray(jaxformer.load(workdir).params["vocabulary"]["kernel"])
    assert np.array_equal(theirs.lm_head.weight.detach().numpy(), kernel.T)
    assert theirs.config.scale_decoder_outputs is False
    theirs.save_pretrained(tmp_path / "again")
    tokenizer_of("unigram").save(tmp_path / "again" / "tokenizer.json")
    import_run(str(tmp_path / "again"), tmp_path / "back")
    back = jaxformer.load(tmp_path / "back")
    assert not back.model.config.tied_embeddings and back.model.config.logit_scale == "none"
    assert np.array_equal(back.params["vocabulary"]["kernel"], kernel)


def test_files_that_torch_wrote(tmp_path: Path) -> None:
    """pytorch_model.bin, whole and sharded, is read without torch's unpickler."""
    workdir = make_run("bart", tmp_path / "run")
    export_run(workdir, tmp_path / "hf")
    theirs = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "hf")
    state = theirs.state_dict()
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    import_run(str(tmp_path / "hf"), tmp_path / "one")
    names = list(state)
    (tmp_path / "hf" / "pytorch_model.bin").unlink()
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name].clone() for name in part}, tmp_path / "hf" / f"part-{number}.bin")
        index |= dict.fromkeys(part, f"part-{number}.bin")
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    import_run(str(tmp_path / "hf"), tmp_path / "two")
    expected = jaxformer.load(workdir).params["embedding"]["tokens"]
    for run in ("one", "two"):
        assert np.array_equal(jaxformer.load(tmp_path / run).params["embedding"]["tokens"], expected)
