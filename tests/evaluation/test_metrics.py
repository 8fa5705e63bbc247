"""Every metric is scikit-learn's number, and every fast way to it gives the same number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

from finetune import registry
from finetune.errors import FinetuneError
from finetune.evaluate import check_code
from finetune.evaluation.metrics import metrics_of
from finetune.evaluation.metrics.labels import label_scores
from finetune.evaluation.predictions.counts import LabelCounts
from finetune.evaluation.predictions.labels import LabelPredictions
from finetune.evaluation.statistics import bootstrap, paired_bootstrap, point

AVERAGED = {
    f"{kind}-{average}": (score, average)
    for kind, score in (
        ("precision", reference.precision_score),
        ("recall", reference.recall_score),
        ("f1", reference.f1_score),
    )
    for average in ("macro", "micro", "weighted")
}
# labels, rows, labels that are never true, labels that are never predicted
CASES = {
    "binary": (2, 40, (), ()),
    "binary-one-class-true": (2, 12, (0,), ()),
    "binary-one-class-predicted": (2, 12, (), (1,)),
    "three": (3, 50, (), ()),
    "twelve": (12, 300, (), ()),
    "twelve-few-rows": (12, 9, (), ()),
    "missing-from-truth": (12, 80, (2, 7), ()),
    "missing-from-predictions": (12, 80, (), (0, 11)),
    "missing-from-both": (12, 80, (3, 5), (3, 8)),
    "one-row": (4, 1, (), ()),
}


def random_predictions(
    labels: int, rows: int, never_true: tuple[int, ...] = (), never_predicted: tuple[int, ...] = (), seed: int = 0
) -> LabelPredictions:
    generator = np.random.default_rng([seed, labels, rows])
    targets = generator.choice([label for label in range(labels) if label not in never_true], rows)
    probabilities = generator.dirichlet(np.full(labels, 0.6), rows)
    probabilities[np.arange(rows), targets] += 0.3 * generator.random(rows)  # better than chance
    probabilities[:, list(never_predicted)] *= 1e-6
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return LabelPredictions(tuple(f"label {n}" for n in range(labels)), targets, probabilities)


def scikit_learn_says(name: str, predictions: LabelPredictions) -> float:
    """What scikit-learn gives, called here in the plainest way."""
    truth, probabilities = predictions.targets, predictions.probabilities
    predicted = probabilities.argmax(axis=1)
    if name == "accuracy":
        return float(reference.accuracy_score(truth, predicted))
    if name == "log-loss":
        return float(reference.log_loss(truth, probabilities, labels=list(range(probabilities.shape[1]))))
    score, average = AVERAGED[name]
    return float(score(truth, predicted, average=average, zero_division=0))


BUILT_IN = [name for name in metrics_of("label") if not name.endswith(":")]


def test_the_metrics_are_those_that_the_tests_here_know() -> None:
    assert set(metrics_of("label")) == {"accuracy", "log-loss", "evaluate:", *AVERAGED}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_metric_equals_scikit_learns(name: str, case: str) -> None:
    predictions = random_predictions(*CASES[case])
    assert point(name, predictions) == pytest.approx(scikit_learn_says(name, predictions), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_fast_path_equals_the_metric_on_every_resample(name: str, case: str) -> None:
    predictions = random_predictions(*CASES[case])
    attributes = registry.metrics.get(name).attributes
    draws = np.random.default_rng(4).integers(0, len(predictions), (40, len(predictions)))
    resamples = [predictions.take(rows) for rows in draws]
    if "from_label_counts" in attributes:
        weights = np.stack([np.bincount(rows, minlength=len(predictions)) for rows in draws]).astype(np.float64)
        fast = attributes["from_label_counts"](predictions.label_counts(weights))
    else:
        fast = attributes["from_rows"](predictions)[draws].mean(axis=1)
    assert fast == pytest.approx([scikit_learn_says(name, resample) for resample in resamples], abs=1e-12)


def test_every_built_in_metric_has_one_fast_path_and_says_which_way_is_better() -> None:
    for name in BUILT_IN:
        attributes = registry.metrics.get(name).attributes
        assert ("from_label_counts" in attributes) != ("from_rows" in attributes), name
        assert attributes["higher_is_better"] is (name != "log-loss"), name
        assert not attributes.get("needs_code"), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["precision", "recall", "f1"])
def test_label_scores_equal_precision_recall_fscore_support(kind: str, case: str) -> None:
    predictions = random_predictions(*CASES[case])
    labels = list(range(len(predictions.labels)))
    expected = reference.precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=labels, zero_division=0
    )
    counts = predictions.label_counts(np.stack([np.ones(len(predictions)), np.full(len(predictions), 2.0)]))
    column = ["precision", "recall", "f1"].index(kind)
    assert label_scores(kind, LabelCounts(*(array[0] for array in counts[:3]))) == pytest.approx(expected[column])
    assert label_scores(kind, counts)[1] == pytest.approx(expected[column], abs=1e-12)


def test_the_confusion_matrix_has_the_truth_in_its_rows() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])
    predictions = LabelPredictions(("a", "b", "c"), np.array([0, 0, 1, 2]), probabilities)
    assert predictions.confusion().tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_a_true_label_with_probability_0_gives_a_finite_log_loss_on_both_paths() -> None:
    predictions = LabelPredictions(("a", "b"), np.array([0, 1]), np.array([[0.0, 1.0], [0.5, 0.5]]))
    losses = registry.metrics.get("log-loss").attributes["from_rows"](predictions)
    assert losses[0] == pytest.approx(-np.log(np.finfo(np.float64).eps))
    assert point("log-loss", predictions) == pytest.approx(losses.mean())


# The evaluate library, with modules that the tests write


MODULE = """
import datasets
import evaluate
{imports}

class Metric(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="a metric", citation="", inputs_description="",
            features=datasets.Features({{name: datasets.Value("int64") for name in ("predictions", "references")}}),
        )

    def _compute(self, predictions, references):
        {body}
"""


@pytest.fixture(scope="module")
def evaluate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Send what the evaluate library writes to a temporary folder; conftest.py does so for its modules."""
    evaluate = pytest.importorskip("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        for setting in ("HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
            patch.setattr(evaluate.config, setting, str(tmp_path_factory.mktemp(setting)))
        yield


@pytest.fixture
def local_module(tmp_path: Path, evaluate_cache: None) -> Callable[..., str]:
    """Return a function that writes a metric module and returns its name as a recipe gives it."""

    def write(body: str, imports: str = "") -> str:
        path = tmp_path / "my_metric" / "my_metric.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(MODULE.format(body=body, imports=imports), encoding="utf-8")
        return f"evaluate:{path}"

    return write


def test_a_local_module_of_the_evaluate_library_is_a_metric(local_module: Callable[..., str]) -> None:
    name = local_module(
        'return {"note": "of two", "share": sum(p == r for p, r in zip(predictions, references)) / len(references)}'
    )
    predictions = random_predictions(3, 50)
    assert point(name, predictions) == pytest.approx(scikit_learn_says("accuracy", predictions), abs=1e-12)


def test_a_metric_of_the_evaluate_library_gets_the_same_interval_as_ours_on_its_resamples(
    local_module: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("RESAMPLES", "RESAMPLES_OF_SLOW_METRICS"):
        monkeypatch.setattr(f"finetune.evaluation.statistics.{setting}", 8)
    name = local_module('return {"share": sum(p == r for p, r in zip(predictions, references)) / len(references)}')
    before, after = random_predictions(3, 50), random_predictions(3, 50, seed=1)
    found = bootstrap([name, "accuracy"], before, seed=3)
    assert found[name].as_json() == pytest.approx(found["accuracy"].as_json())
    drops = paired_bootstrap(["accuracy", name], before, after, seed=3)
    assert drops[name].as_json() == pytest.approx(drops["accuracy"].as_json())


@pytest.mark.parametrize(("value", "expected"), [("numpy.float32(0.25)", 0.25), ("numpy.int64(3)", 3.0)])
def test_a_number_of_numpy_is_a_number(local_module: Callable[..., str], value: str, expected: float) -> None:
    name = local_module(f'return {{"score": {value}}}', imports="import numpy")
    assert point(name, random_predictions(2, 4)) == expected


def test_a_result_without_a_number_is_the_users_mistake(local_module: Callable[..., str]) -> None:
    name = local_module('return {"verdict": "fine"}')
    with pytest.raises(FinetuneError, match=r"expected a result with a number, found .*fine"):
        point(name, random_predictions(2, 4))


@pytest.mark.parametrize(
    ("body", "imports", "reason"),
    [
        ('raise ValueError("too few rows")', "", "too few rows"),
        ('return {}["nothing"]', "", "nothing"),
        ("return {}", "import a_package_that_nobody_has", "a_package_that_nobody_has"),
    ],
    ids=["value", "any-error", "missing-package"],
)
def test_a_module_that_fails_is_the_users_mistake_and_its_reason_is_told(
    local_module: Callable[..., str], body: str, imports: str, reason: str
) -> None:
    name = local_module(body, imports=imports)
    with pytest.raises(FinetuneError, match=f"(?s)evaluate:.*my_metric.*{reason}"):
        point(name, random_predictions(2, 4))


def test_a_module_that_is_not_there_is_the_users_mistake(local_module: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"nowhere\.py cannot be computed"):
        point(f"evaluate:{tmp_path / 'nowhere.py'}", random_predictions(2, 4))


def test_a_metric_that_runs_code_is_refused_unless_the_command_line_allows_it() -> None:
    names = ["accuracy", "evaluate:somewhere/metric.py"]
    with pytest.raises(FinetuneError, match=r"evaluate:somewhere/metric\.py runs code .* --allow-code"):
        check_code(names, allow_code=False)
    check_code(names, allow_code=True)
    check_code(["accuracy", "log-loss"], allow_code=False)
