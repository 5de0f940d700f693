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
import tuning  # noqa: E402
from runs import CASES, make_run, tokenizer_of  # noqa: E402

import jaxformer  # noqa: E402
from jaxformer.interop import export_run, import_run  # noqa: E402

pytestmark = pytest.mark.slow
torch.set_num_threads(1)  # the models are tiny, and other processes use the cores


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


AUTO = {  # the Auto class through which a class is loaded, by the end of its name
    "LMHeadModel": "CausalLM", "ForMaskedLM": "MaskedLM", "ForConditionalGeneration": "Seq2SeqLM",
    "MTModel": "Seq2SeqLM", "ForSequenceClassification": "SequenceClassification",
    "ForMultipleChoice": "MultipleChoice", "ForTokenClassification": "TokenClassification",
    "ForQuestionAnswering": "QuestionAnswering",
}  # fmt: skip


def loader(name: str) -> Any:
    """Return the class that loads a class: an Auto class, where there is one for it."""
    kind = next((kind for suffix, kind in AUTO.items() if name.endswith(suffix)), None)
    auto = "AutoModelForPreTraining" if name.endswith("ForPreTraining") else f"AutoModelFor{kind}"
    return getattr(transformers, auto if kind or auto.endswith("PreTraining") else name)


def batch_for(run: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return two rows of random tokens, or two of two texts each, every second one with padding behind it; the last
    real token is an end or none."""
    config, vocabulary = run.model.config, run.tokenizer.vocabulary
    reads = {head: reads for head, _, reads in run.model.heads}
    texts = 2 if "choices" in reads.values() else 1
    lengths = np.tile([9, 6], texts)

    def row(prefix: str) -> dict[str, np.ndarray]:
        real = np.arange(9)[None] < lengths[:, None]
        ids = rng.integers(10, config.vocab_size - 21, real.shape)
        if "end" in vocabulary.special:
            last = vocabulary.id("end") if config.family != "decoder_only" else 11
            ids[np.arange(len(lengths)), lengths - 1] = last
        positions = np.where(real, np.arange(real.shape[1]), 0)
        ids = np.where(real, ids, vocabulary.id("pad"))
        return {f"{prefix}inputs": ids, f"{prefix}segment_ids": real.astype(int), f"{prefix}positions": positions}

    arrays = row("")
    if config.family == "encoder_decoder":
        arrays |= row("encoder_")
        if run.model.heads:  # the decoder reads what the encoder reads, one place later
            arrays["inputs"] = np.roll(arrays["encoder_inputs"], 1, axis=1)
            arrays["inputs"][:, 0] = vocabulary.id(config.decoder_start)
    if config.token_types:
        arrays["token_types"] = np.where(arrays["segment_ids"] > 0, np.arange(9) >= 4, 0)
    if "label" in reads and reads["label"] != "tokens" and config.family != "encoder_only":
        arrays["label_positions"] = lengths - 1
    if texts > 1:
        arrays = {key: array.reshape(-1, texts, *array.shape[1:]) for key, array in arrays.items()}
    return {key: array.astype(np.int32) for key, array in arrays.items()}


def their_inputs(arrays: dict[str, np.ndarray], class_name: str) -> dict[str, Any]:
    """Return what their class reads of arrays of ours."""
    long = {key: torch.from_numpy(np.asarray(array)).long() for key, array in arrays.items()}
    paired = "encoder_inputs" in long
    prefix = "encoder_" if paired else ""
    inputs = {"input_ids": long[f"{prefix}inputs"], "attention_mask": long[f"{prefix}segment_ids"]}
    if paired:
        inputs |= {"decoder_input_ids": long["inputs"], "decoder_attention_mask": long["segment_ids"]}
    if "token_types" in long and not class_name.startswith("DistilBert"):
        inputs["token_type_ids"] = long["token_types"]
    if class_name.endswith("DoubleHeadsModel"):
        inputs["mc_token_ids"] = long["label_positions"]
        del inputs["attention_mask"]  # GPT's class takes none for several texts; nothing real sees what is behind it
    return inputs


@pytest.mark.parametrize("name", CASES)
def test_their_classes_load_our_exports(name: str, tmp_path: Path) -> None:
    workdir, out = make_run(name, tmp_path / "run"), tmp_path / "hf"
    class_name = export_run(workdir, out)
    theirs, info = loader(class_name).from_pretrained(out, output_loading_info=True, attn_implementation="eager")
    assert type(theirs).__name__ == class_name
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    run = jaxformer.load(workdir)
    arrays = batch_for(run, np.random.default_rng(0))
    outputs = run.model.apply(run.params, {key: jnp.asarray(array) for key, array in arrays.items()})
    with torch.no_grad():
        found = theirs.eval()(**their_inputs(arrays, class_name))
    real = arrays["segment_ids"] > 0
    if run.model.predicts_tokens and not class_name.endswith("ForSequenceClassification"):
        logits = found.prediction_logits if "prediction_logits" in found else found.logits
        ours = np.asarray(run.model.project(run.params, outputs["hidden"])).reshape(*real.shape, -1)
        assert comparison.error(ours[real], logits.numpy()[real]) <= 1e-5
    logits = {"label": "mc_logits" if "mc_logits" in found else "logits", "next_sentence": "seq_relationship_logits",
              "start": "start_logits", "end": "end_logits"}  # fmt: skip
    for head, _, reads in run.model.heads:
        ours, expected = np.asarray(outputs[head]), found[logits[head]].numpy()
        assert ours.shape == expected.shape
        where = real if reads == "tokens" else ...
        assert comparison.error(ours[where], expected[where]) <= 1e-5


def test_what_an_export_says_of_its_task_survives_their_saving(tmp_path: Path) -> None:
    """problem_type, labels and the task's settings come back from a folder that transformers has written."""
    workdir = make_run("bert_classes", tmp_path / "run")
    class_name = export_run(workdir, tmp_path / "hf")
    theirs = loader(class_name).from_pretrained(tmp_path / "hf")
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == dict(enumerate(jaxformer.load(workdir).labels))
    theirs.save_pretrained(tmp_path / "again")
    tokenizer_of("wordpiece").save(tmp_path / "again" / "tokenizer.json")
    import_run(str(tmp_path / "again"), tmp_path / "back")
    before, after = jaxformer.load(workdir), jaxformer.load(tmp_path / "back")
    assert after.labels == before.labels and after.config.task == before.config.task


@pytest.mark.parametrize("name", tuning.CASES)
def test_twenty_steps_of_fine_tuning(name: str, tmp_path: Path) -> None:
    case = tuning.CASES[name]
    theirs = tuning.their_model(case, tmp_path / "hf")
    task, model, params = tuning.imported(case, tmp_path / "hf", tmp_path / "run")
    arrays = tuning.batches(case, task)
    inputs = [their_inputs(batch, case.name) | tuning.their_labels(case, batch) for batch in arrays]
    expected = tuning.their_losses(theirs, inputs)
    assert len(set(expected)) == tuning.STEPS
    np.testing.assert_allclose(tuning.our_losses(task, model, params, arrays), expected, rtol=0, atol=1e-3)


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


TINY = {  # class, its config, the tokenizer and the sizes that the three families name differently
    "gpt2": ("GPT2LMHeadModel", "bpe", {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "t5": ("T5ForConditionalGeneration", "unigram",
           {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}),
    "bert": ("BertForMaskedLM", "wordpiece", {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                                              "num_attention_heads": 2, "max_position_embeddings": 64}),
}  # fmt: skip
SCORED = [
    ("Return the number of", " items in the queue."),
    ("Open the file and read", " every line of it, one at a time."),
    ("A thread may wait until another", " has released the lock"),
]


def imported_run(kind: str, folder: Path) -> tuple[Any, Any]:
    """Return (their model with random weights, our run of it)."""
    name, tokenizer, sizes = TINY[kind]
    words = tokenizer_of(tokenizer)
    torch.manual_seed(0)
    config = getattr(transformers, name).config_class(vocab_size=words.vocab_size, **sizes)
    config.initializer_range = 0.4
    theirs = getattr(transformers, name)(config).eval()
    theirs.save_pretrained(folder / "hf")
    words.save(folder / "hf" / "tokenizer.json")
    import_run(str(folder / "hf"), folder / "run")
    return theirs, jaxformer.load(folder / "run")


def test_log_likelihoods_are_their_losses(tmp_path: Path) -> None:
    theirs, run = imported_run("gpt2", tmp_path)
    end = run.tokenizer.vocabulary.id("end")
    for whole, (context, text) in zip(run.score([c + t for c, t in SCORED]), SCORED, strict=True):
        before, ids = run.tokenizer.encode(context).tolist(), run.tokenizer.encode(context + text).tolist()
        row = torch.tensor([[end, *ids]])
        with torch.no_grad():
            loss = float(theirs(input_ids=row, labels=row).loss)
            labels = torch.tensor([[-100] * len(before) + ids[len(before) :]])
            behind = float(theirs(input_ids=row[:, 1:], labels=labels).loss)
        assert whole["log_likelihood"] == pytest.approx(-loss * len(ids), rel=1e-5)
        assert whole["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
        found = run.score(context, text)
        assert found["log_likelihood"] == pytest.approx(-behind * found["tokens"], rel=1e-5)


def test_what_a_decoder_writes_scores_as_their_loss(tmp_path: Path) -> None:
    theirs, run = imported_run("t5", tmp_path)
    found = run.score([context for context, _ in SCORED], [text for _, text in SCORED], end=True)
    for (context, text), ours in zip(SCORED, found, strict=True):
        source, labels = (torch.tensor([run.tokenizer.encode(t, special=True).tolist()]) for t in (context, text))
        with torch.no_grad():
            loss = float(theirs(input_ids=source, labels=labels).loss)
        assert ours["tokens"] == labels.numel()
        assert ours["log_likelihood"] == pytest.approx(-loss * labels.numel(), rel=1e-5)


def test_pseudo_log_likelihoods_are_their_losses(tmp_path: Path) -> None:
    theirs, run = imported_run("bert", tmp_path)
    mask = run.tokenizer.vocabulary.id("mask")
    for text, ours in zip([c + t for c, t in SCORED], run.score([c + t for c, t in SCORED]), strict=True):
        ids = torch.tensor(run.tokenizer.encode(text, special=True).tolist())
        places = torch.arange(1, len(ids) - 1)
        rows = ids.repeat(len(places), 1)
        labels = torch.full_like(rows, -100)
        labels[torch.arange(len(places)), places] = ids[places]
        rows[torch.arange(len(places)), places] = mask
        with torch.no_grad():
            loss = float(theirs(input_ids=rows, labels=labels).loss)
        assert ours["pseudo_log_likelihood"] == pytest.approx(-loss * len(places), rel=1e-5)


@pytest.mark.parametrize("stride", [16, 64])
def test_a_document_has_their_strided_perplexity(stride: int, tmp_path: Path) -> None:
    """Windows as in their guide to perplexity, each row begun one token earlier, so that every token is predicted."""
    theirs, run = imported_run("gpt2", tmp_path)
    text = " ".join(context + text for context, text in SCORED) * 5
    ids = torch.tensor([[run.tokenizer.vocabulary.id("end"), *run.tokenizer.encode(text).tolist()]])
    total, done, last = 0.0, 0, ids.numel() - 1
    while done < last:
        end = min(done + (stride if done else 64), last)
        begin = max(end - 64, 0)
        with torch.no_grad():
            logits = theirs(input_ids=ids[:, begin:end]).logits[0, done - begin :]
        total -= float(torch.nn.functional.cross_entropy(logits, ids[0, done + 1 : end + 1], reduction="sum"))
        done = end
    found = run.score_document(text, stride=stride)
    assert found["tokens"] == last and found["log_likelihood"] == pytest.approx(total, rel=1e-5)
