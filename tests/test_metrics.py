"""Metrics of every kind of label: by hand, as official scorers print them, and their intervals."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jaxformer.errors import UserError
from jaxformer.tasks.metrics import METRICS, check_metrics, intervals, measure, signatures
from jaxformer.tasks.text_metrics import normal_answer

ANSWERABLE = (["the Eiffel Tower", "Eiffel tower, Paris"], ["1889"], ["the"], ["red and blue"])
GIVEN = ("Eiffel Tower!", "in 1889", "a", "")

# Examples of each kind of label, some right and some wrong.
EXAMPLES = {
    "class": ([0, 0, 1, 1, 1, 0, 1, 0], [0, 1, 1, 1, -1, 0, 0, 0]),
    "choice": ([0, 3, 2, 1], [0, 3, 1, 1]),
    "classes": ([[0, 1], [1], [], [2], [0]], [[0], [1, 2], [], [2, 1], []]),
    "number": ([1.0, 2.0, 2.0, 4.5, 5.0], [1.5, 1.0, 2.0, 2.0, 4.0]),
    "tags": (
        [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["O", "O"], ["B-LOC", "O"]],
        [["B-PER", "I-PER", "O"], ["B-LOC", "B-LOC"], ["O", "O"], ["O", "O"]],
    ),
    "span": ([["a red car"], ["blue"], [], ["green", "dark green"], []], ["red car", "red", "", "the dark", "x"]),
    "text": (
        [["the cat sat on the mat ."], ["a dog barked at the man .", "the dog barked ."], ["it rained all day long ."]],
        ["the cat sat on a mat .", "the dog barked .", "it was sunny"],
    ),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def each_metric():
    return [pytest.param(name, kind, id=f"{name}-{kind}") for name, one in METRICS.items() for kind in one.kinds]


def test_classes_by_hand() -> None:
    # 2 hits, 1 miss and 1 false alarm of the second class, 6 hits of the first.
    truths, guesses = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    found = measure(["accuracy", "f1", "f1_binary", "matthews"], truths, guesses, 2)
    assert found == pytest.approx(
        {"accuracy": 0.8, "f1": (4 / 6 + 12 / 14) / 2, "f1_binary": 4 / 6, "matthews": (2 * 6 - 1 * 1) / (3 * 7)}
    )
    assert list(found) == ["accuracy", "f1", "f1_binary", "matthews"]
    # What names no class is wrong: for the binary F1 it counts as the other class, here one miss and one false alarm.
    assert measure("f1_binary", [1, 1, 0, 0], [1, -1, -1, 0], 2) == {"f1_binary": 0.5}
    assert measure("accuracy", [1, 1, 0, 0], [1, -1, -1, 0], 2) == {"accuracy": 0.5}
    # Everything in one class says nothing (GLUE's 0 for CoLA), and the class that is never there counts in f1 as 0.
    assert measure(["matthews", "f1_binary"], [0, 1, 1, 0], [0] * 4, 2) == {"matthews": 0.0, "f1_binary": 0.0}
    assert measure("f1", [0, 1, 1, 0], [0, 1, 1, 0], labels=("a", "b", "c")) == pytest.approx({"f1": 2 / 3})
    assert measure("f1", [0, 1, 1, 0], [0, 1, 1, 0]) == {"f1": 1.0}
    assert measure("accuracy", [], []) == {} == intervals("accuracy", [], [])
    with pytest.raises(ValueError, match="2 guesses for 3 examples"):
        measure("accuracy", [0, 1, 1], [0, 1])


def test_macro_f1_of_three_classes() -> None:
    # Precision and recall: 1/2 and 1/2; 2/3 and 1; 0 and 0.
    found = measure(["accuracy", "f1"], np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0]), 3)
    assert found == pytest.approx({"accuracy": 3 / 5, "f1": (1 / 2 + 4 / 5 + 0) / 3})


def test_text_that_names_no_class_is_wrong_without_being_a_class() -> None:
    # Each class: precision 1, recall 1/2. A third class for -1 would make it 4/9.
    found = measure(["accuracy", "f1"], [0, 0, 1, 1], [0, -1, -1, 1], 2)
    assert found == pytest.approx({"accuracy": 1 / 2, "f1": 2 / 3})
    assert measure(["accuracy", "f1"], [0, 0, 1, 1], [-1] * 4, 2) == {"accuracy": 0.0, "f1": 0.0}


def test_a_class_that_is_never_predicted_counts_as_much_as_the_others() -> None:
    found = measure(["accuracy", "f1"], [0] * 9 + [1], [0] * 10, 2)
    assert found == pytest.approx({"accuracy": 0.9, "f1": 18 / 19 / 2})


def test_classes_as_scikit_learn_has_them(rng: np.random.Generator) -> None:
    truths = rng.integers(5, size=300)
    guesses = np.where(rng.random(300) < 0.6, truths, rng.integers(-1, 5, size=300))
    found = measure(["f1", "matthews"], truths.tolist(), guesses.tolist(), 5)
    assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(truths, guesses))
    expected = sklearn.metrics.f1_score(truths, guesses, labels=range(5), average="macro")
    assert found["f1"] == pytest.approx(expected)


def test_several_labels(rng: np.random.Generator) -> None:
    truths, guesses = [[0, 1], [1], [], [2]], [[0], [1, 2], [], [2, 1]]
    # Hits 1, 1, 1; guessed 1, 2, 2; true 1, 2, 1. The empty one alone is right as a whole.
    assert measure(["micro_f1", "macro_f1", "exact_match"], truths, guesses, 3) == pytest.approx(
        {"micro_f1": 6 / 9, "macro_f1": (1 + 2 / 4 + 2 / 3) / 3, "exact_match": 1 / 4}
    )
    assert measure("macro_f1", truths, guesses, 4)["macro_f1"] == pytest.approx((1 + 2 / 4 + 2 / 3) / 4)
    assert measure(["micro_f1", "exact_match"], [[]], [[]]) == {"micro_f1": 0.0, "exact_match": 1.0}
    assert measure("exact_match", [[1, 0]], [[0, 1]]) == {"exact_match": 1.0}
    hot = rng.random((2, 100, 7)) < 0.3
    sets = [[np.flatnonzero(row).tolist() for row in table] for table in hot]
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(*hot, average=average, zero_division=0.0)
        assert measure(f"{average}_f1", *sets, 7)[f"{average}_f1"] == pytest.approx(expected), average


def test_numbers() -> None:
    # Deviations -1 0 1 and -2 -1 3: 5 / sqrt(2 * 14).
    assert measure(["pearson", "spearman", "mse"], [1, 2, 3], [1, 2, 6]) == pytest.approx(
        {"pearson": 5 / math.sqrt(28), "spearman": 1.0, "mse": 3.0}
    )
    # Equal numbers share a rank, 1.5: ranks -1 0 1 and -0.5 -0.5 1 about their means, 1.5 / sqrt(2 * 1.5).
    assert measure("spearman", [1, 2, 3], [2, 2, 3])["spearman"] == pytest.approx(1.5 / math.sqrt(3))
    assert measure(["pearson", "spearman"], [1, 2, 3], [3, 2, 1]) == pytest.approx({"pearson": -1, "spearman": -1})


def test_there_is_no_correlation_with_a_constant() -> None:
    for truths, guesses in (([1, 2, 3], [0.1] * 3), ([2.0] * 3, [1, 2, 3]), ([1], [1])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = measure(["pearson", "spearman"], truths, guesses)
            low, high = intervals("pearson", truths, guesses, resamples=20)["pearson"]
            close = measure("pearson", [1, 2, 3], [1e9, 1e9, 1e9 + 1e-6])  # of which scipy warns
        assert all(map(math.isnan, (*found.values(), low, high))) and close
    # Resamples that are constant are left out; the others tell the interval.
    assert intervals("pearson", [0, 1, 2], [0, 1, 2], resamples=50)["pearson"] == pytest.approx((1, 1))


# Sentences with true and predicted tags, and what conlleval.pl prints of them (BIOES: as BIO): right, found, correct.
TAGGED = {
    "BIO": (
        [
            ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC"),
            ("O O B-MISC I-MISC I-MISC O", "O B-MISC I-MISC I-MISC I-MISC O"),
            ("B-PER I-PER O", "B-PER I-LOC O"),  # another type within is another entity
            ("B-LOC B-LOC O", "B-LOC I-LOC O"),
            ("O B-ORG I-ORG", "O I-ORG I-ORG"),  # an entity may begin with I
        ],
        (7, 7, 3),
        (42.86, 42.86, 42.86, 73.68),
    ),
    "IOB1": (
        [
            ("I-PER I-PER O I-LOC", "I-PER I-PER O I-LOC"),
            ("I-PER B-PER O", "I-PER I-PER O"),
            ("I-ORG I-LOC O", "I-ORG I-LOC I-LOC"),
            ("O I-PER B-PER I-PER", "O I-PER B-PER I-PER"),
        ],
        (8, 7, 5),
        (71.43, 62.50, 66.67, 85.71),
    ),
    "BIOES": (
        [
            ("S-PER O B-LOC I-LOC E-LOC", "S-PER O B-LOC I-LOC E-LOC"),
            ("B-PER E-PER S-PER O", "B-PER E-PER B-PER E-PER"),
            ("O S-ORG", "O O"),
            ("S-LOC O", "S-LOC S-LOC"),
        ],
        (6, 6, 4),
        (66.67, 66.67, 66.67, None),
    ),
}


@pytest.mark.parametrize("scheme", TAGGED)
def test_entities_as_conlleval_has_them(scheme: str) -> None:
    sentences, (right, found, correct), printed = TAGGED[scheme]
    truths, guesses = ([tags.split() for tags in column] for column in zip(*sentences, strict=True))
    names = ("seqeval_precision", "seqeval_recall", "seqeval_f1", "tag_accuracy")
    values = measure(names, truths, guesses)
    assert values["seqeval_precision"] == pytest.approx(correct / found)
    assert values["seqeval_recall"] == pytest.approx(correct / right)
    for name, expected in zip(names, printed, strict=True):
        assert expected is None or round(100 * values[name], 2) == expected, name


def test_tags_of_other_kinds() -> None:
    bilou = [["U-PER", "O", "B-LOC", "I-LOC", "L-LOC"], ["U-PER", "U-PER"]]
    bioes = [["S-PER", "O", "B-LOC", "I-LOC", "E-LOC"], ["S-PER", "S-PER"]]
    assert measure("seqeval_f1", bioes, bilou) == {"seqeval_f1": 1.0}
    assert measure(["seqeval_f1", "tag_accuracy"], [["O"]], [["O"]]) == {"seqeval_f1": 0.0, "tag_accuracy": 1.0}
    with pytest.raises(UserError, match="'NOUN' spells no entity.*choose tag_accuracy"):
        measure("seqeval_f1", [["O", "NOUN"]], [["O", "O"]])
    assert measure("tag_accuracy", [["DET", "NOUN"], ["VERB"]], [["DET", "NOUN"], ["NOUN"]]) == {"tag_accuracy": 2 / 3}
    with pytest.raises(ValueError, match="1 tags for 2 words"):
        measure("seqeval_f1", [["O", "O"]], [["O"]])


def test_answers_are_compared_as_squad_does() -> None:
    for text, normal in {
        "The Eiffel-Tower,  in  Paris!": "eiffeltower in paris",  # punctuation goes first, and joins words
        "an A, a the": "",
        "A-1 steak": "a1 steak",
        "Theatre of another": "theatre of another",
        "$1,000.50": "100050",
        "“El Niño”": "“el niño”",  # quotes of print are none of ASCII's punctuation
        "the\ttwo\nlines": "two lines",
    }.items():
        assert normal_answer(text) == normal, text


def test_squad_with_an_answer_to_every_question() -> None:
    # Equal: 1. "in 1889": 1 word of 2 and of 1, F1 2/3. "a" and "the" are both nothing: equal, without a common word.
    found = measure(["squad_em", "squad_f1"], ANSWERABLE, GIVEN)
    assert found == pytest.approx({"squad_em": 2 / 4, "squad_f1": (1 + 2 / 3 + 0 + 0) / 4})
    # The best of several answers; words count as often as both have them: 2 * 2 / (3 + 4).
    assert measure("squad_f1", [["x", "b b c"]], ["b b d e"])["squad_f1"] == pytest.approx(4 / 7)
    assert measure("squad_em", [["in the year 1889"]], ["Year 1889"]) == {"squad_em": 0.0}


def test_squad_with_questions_that_have_no_answer() -> None:
    # Now "the" is no answer, to which only nothing ("a") is right, and "" is right where there is none.
    truths, guesses = [*ANSWERABLE, [], []], [*GIVEN, "", "Paris"]
    assert measure([name for name in METRICS if name.startswith("squad")], truths, guesses) == pytest.approx(
        {
            "squad_em": (1 + 0 + 1 + 0 + 1 + 0) / 6,
            "squad_f1": (1 + 2 / 3 + 1 + 0 + 1 + 0) / 6,
            "squad_has_answer_em": 2 / 4,
            "squad_has_answer_f1": (1 + 2 / 3 + 1) / 4,
            "squad_no_answer_em": 1 / 2,
        }
    )
    assert math.isnan(measure("squad_no_answer_em", ANSWERABLE, GIVEN)["squad_no_answer_em"])


def test_bleu_and_chrf() -> None:
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; then three words too short: exp(1 - 6 / 5).
    assert measure("bleu", [["the cat sat on the mat"]], ["the cat sat on a mat"])["bleu"] == pytest.approx(
        100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )
    assert measure("bleu", [["the cat sat on the mat"]], ["the cat sat on the"])["bleu"] == pytest.approx(
        100 * math.exp(1 - 6 / 5)
    )
    assert measure(["bleu", "chrf"], [["a b c d"]], ["a b c d"]) == pytest.approx({"bleu": 100, "chrf": 100})
    assert measure(["bleu", "chrf", "rougeL"], [["a b c d"]], [""]) == {"bleu": 0, "chrf": 0, "rougeL": 0}
    # The example of sacreBLEU's README, and what it prints there.
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    guesses = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    found = measure(["bleu", "chrf"], references, guesses)
    assert found == pytest.approx({"bleu": 48.530827009929865, "chrf": 59.73}, abs=5e-3)
    # The tokenisers differ: 13a leaves "wasn't" whole, intl, which T5 takes, parts it.
    assert measure("bleu_intl", references, guesses)["bleu_intl"] == pytest.approx(43.916, abs=1e-3)


def test_an_example_may_have_more_references_than_another() -> None:
    fewer = [["a dog ran home"], ["the cat sat down", "a cat sat down there"]]
    given = ["a dog ran home", "a cat sat down there"]
    assert measure(["bleu", "chrf", "rouge2"], fewer, given) == pytest.approx({"bleu": 100, "chrf": 100, "rouge2": 100})
    assert "nrefs:var|" in signatures("bleu", fewer)["bleu_signature"]
    found = signatures(["bleu", "rouge1", "chrf"], [["a"], ["b"]])
    assert list(found) == ["bleu_signature", "chrf_signature"]
    assert found["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert signatures(["bleu"], []) == {} == signatures(["squad_f1"], fewer)


def test_rouge() -> None:
    # 9 words and 8: the, quick, brown, dog, jumps, the are in both; the pairs "the quick" and "quick brown"; in order
    # the quick brown jumps the.
    fox = ["The quick brown fox jumps over the lazy dog"], "The quick brown dog jumps on the log."
    names = ["rouge1", "rouge2", "rougeL"]
    expected = {"rouge1": 1200 / 17, "rouge2": 400 / 15, "rougeL": 1000 / 17}
    assert measure(names, [fox[0]], [fox[1]]) == pytest.approx(expected)
    # Of several references the best counts, and the mean over texts.
    assert measure(names, [["x", *fox[0]], ["y"]], [fox[1], "z"]) == pytest.approx(
        {name: value / 2 for name, value in expected.items()}
    )
    # rougeLsum goes by sentence, and " . " ends one: both sentences are found, in the other order.
    swapped = [["one two . three four ."]], ["three four . one two ."]
    assert measure(["rougeL", "rougeLsum"], *swapped) == pytest.approx({"rougeL": 50, "rougeLsum": 100})


@pytest.mark.parametrize("name, kind", each_metric())
def test_a_resample_is_scored_as_if_its_examples_were_all(name: str, kind: str, rng: np.random.Generator) -> None:
    truths, guesses = EXAMPLES[kind]
    score = METRICS[name].prepare(truths, guesses, 3 if kind == "classes" else 2)
    values = set()
    for _ in range(4):
        draw = rng.integers(len(truths), size=len(truths))
        drawn = [truths[i] for i in draw], [guesses[i] for i in draw]
        if kind == "span" and all(drawn[0]):
            continue  # by themselves they are questions of SQuAD 1.1
        assert score(draw) == pytest.approx(measure(name, *drawn, 3 if kind == "classes" else 2)[name], nan_ok=True)
        values.add(score(draw))
    assert len(values) > 1


@pytest.mark.parametrize("name, kind", each_metric())
def test_intervals_lie_about_the_value(name: str, kind: str) -> None:
    found = intervals(name, *EXAMPLES[kind], resamples=60, seed=1)
    low, high = found[name]
    assert low <= measure(name, *EXAMPLES[kind])[name] <= high and low < high
    assert intervals(name, *EXAMPLES[kind], resamples=60, seed=1) == found


def test_resamples_follow_the_seed_and_are_the_same_for_all_metrics(rng: np.random.Generator) -> None:
    truths, guesses = rng.random((2, 50))
    both = intervals(["mse", "pearson"], truths, guesses, seed=3)
    assert both == intervals("mse", truths, guesses, seed=3) | intervals("pearson", truths, guesses, seed=3)
    assert both["mse"] != intervals("mse", truths, guesses, seed=4)["mse"]


def test_intervals_are_as_wide_as_theory_says(rng: np.random.Generator) -> None:
    right = (np.arange(2000) >= 400).astype(int)  # 80 %
    low, high = intervals("accuracy", np.ones(2000, int), right)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.1 * half)
    # Fisher's z of a correlation has the standard error 1 / sqrt(n - 3).
    first, noise = rng.normal(size=(2, 1000))
    z, step = np.arctanh(scipy.stats.pearsonr(first, first + noise)[0]), 1.96 / math.sqrt(997)
    found = intervals("pearson", first, first + noise)["pearson"]
    assert found == pytest.approx((math.tanh(z - step), math.tanh(z + step)), abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    held = 0
    for seed, right in enumerate(rng.random((200, 150)) < 0.7):
        low, high = intervals("accuracy", np.ones(150, int), right.astype(int), seed=seed, resamples=150)["accuracy"]
        held += low <= 0.7 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_a_metric_that_does_not_fit_is_refused() -> None:
    for names, kind, words in (
        ("bleu", "class", "task.metrics: bleu judges text, but this task predicts a class; choose among accuracy, f1,"),
        (["seqeval_f1", "accuracy"], "tags", "accuracy judges a class or a choice, but this task predicts a tag for"),
        ("squad_em", "number", "squad_em judges an answer or text, but this task predicts a number; choose among pear"),
        ("acuracy", "choice", "'acuracy' is not one of accuracy; did you mean 'accuracy'?"),
        (["rouge"], "text", "'rouge' is not one of squad_em, squad_f1, bleu,"),
    ):
        with pytest.raises(UserError) as error:
            check_metrics(names, kind)
        assert words in str(error.value), names
    for name, metric in METRICS.items():
        for kind in metric.kinds:
            check_metrics([name], kind)
    check_metrics((), "text")


def test_a_metric_that_does_not_fit_the_labels_is_refused() -> None:
    check_metrics("f1_binary", "class", ("no", "yes"))
    check_metrics("seqeval_f1", "tags", ("O", "B-PER", "I-PER", "S-LOC"))
    with pytest.raises(UserError, match="second of two classes, but there are 3; f1 is the mean"):
        check_metrics(["accuracy", "f1_binary"], "class", ("a", "b", "c"))
    with pytest.raises(UserError, match="second of two classes, but there are 3"):
        measure("f1_binary", [0, 1, 2], [0, 0, 0])
    with pytest.raises(UserError, match="the tag 'VERB' spells no entity"):
        check_metrics("seqeval_recall", "tags", ("O", "VERB"))


@pytest.mark.reference
def test_bleu_of_a_real_translation(reference_data: Path) -> None:
    """3,000 sentences of a German-English system; tensorflow/nmt's scorer gives 22.5855 on their tokens as they are."""
    folder = reference_data / "bleu_reference_nmt"
    guesses, pieces = ((folder / name).read_text("utf-8").splitlines() for name in ("deen_output", "deen_ref_bpe"))
    truths = [[line.replace("@@ ", "")] for line in pieces]
    # What sacreBLEU itself prints: 22.43, and 22.43 +- 0.61 of its own resamples.
    assert measure("bleu", truths, guesses)["bleu"] == pytest.approx(22.4267, abs=1e-3)
    assert intervals("bleu", truths, guesses)["bleu"] == pytest.approx((22.43 - 0.61, 22.43 + 0.61), abs=0.1)
