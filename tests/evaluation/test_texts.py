"""Generated texts are judged as rouge_score and sacreBLEU judge them, and the fast ways give the same numbers."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import regex
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import registry
from finetune.errors import FinetuneError
from finetune.evaluation.metrics import metrics_of
from finetune.evaluation.metrics.answers import shares
from finetune.evaluation.metrics.texts import SACREBLEU, score_of, signatures, statistics_of, word_counts
from finetune.evaluation.predictions.texts import TextPredictions, answer_of, comparable, compiled
from finetune.evaluation.rouge import VARIANTS, rouge_scores, rouge_words
from finetune.evaluation.statistics import bootstrap, point

ANSWER = r"#### (-?[\d.,]+)"
WORDS = [
    "The",
    "barge",
    "barge",
    "carries",
    "coal",
    "to",
    "the",
    "mill",
    "at",
    "dawn",
    "No.",
    "7",
    "#### 7",
    "x-y",
    "\n",
]


def predictions_of(said: Sequence[str], references: Sequence[Sequence[str]], pattern: str | None = None) -> Any:
    return TextPredictions.of(said, references, [f"source {number}" for number in range(len(said))], pattern=pattern)


def random_predictions(count: int, seed: int, most: int = 3) -> TextPredictions:
    """Texts of a few words, some of them empty, each with one to `most` references that are like it."""
    generator = random.Random(seed)

    def text(near: str = "") -> str:
        kept = [word for word in near.split(" ") if generator.random() < 0.7]
        return " ".join(kept + generator.choices(WORDS, k=generator.randint(0, 6)))

    said = [text() for _ in range(count)]
    references = [[text(one) for _ in range(generator.randint(1, most))] for one in said]
    return predictions_of(said, references, ANSWER)


# -- ROUGE

ASCII = st.text(alphabet="ab cdeA_-9'.\n\t", max_size=60)
EDGES = [
    "",
    " ",
    "\n",
    "saw",
    "Saw.",
    "saw saw",
    "saw\nsaw",
    "the old saw",
    "old\nthe saw",
    "...",
    "---\nsaw\n\n???",
    "_",
]


def reference_scores(said: str, references: Sequence[str], tokenizer: Any = None) -> list[float]:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(list(VARIANTS), tokenizer=tokenizer)
    scores = scorer.score_multi(references, said)
    return [scores[variant].fmeasure for variant in VARIANTS]


def test_rouge_is_that_of_rouge_score_on_edges() -> None:
    for said in EDGES:
        for reference in EDGES:
            wanted = reference_scores(said, [reference])
            assert rouge_scores(said, [reference]) == pytest.approx(wanted, abs=1e-9), (said, reference)


@settings(deadline=None, max_examples=300)
@given(ASCII, st.lists(ASCII, min_size=1, max_size=3))
def test_rouge_is_that_of_rouge_score_on_random_texts(said: str, references: list[str]) -> None:
    assert rouge_scores(said, references) == pytest.approx(reference_scores(said, references), abs=1e-9)


def test_rouge_is_that_of_rouge_score_on_long_texts_of_many_lines() -> None:
    generator = random.Random(5)
    vocabulary = [f"word{number}" for number in range(60)]
    said, *references = ("\n".join(" ".join(generator.choices(vocabulary, k=25)) for _ in range(9)) for _ in range(3))
    assert rouge_scores(said, references) == pytest.approx(reference_scores(said, references), abs=1e-9)


class UnicodeTokenizer:
    """Gives rouge_score our words, so that the scores of any script can be compared."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_words(text)


@settings(deadline=None, max_examples=100)
@given(
    st.text(alphabet="пила я 我爱 あ\u0e27\u0e31é\u0301'.\n", max_size=40),
    st.text(alphabet="пила я爱我é\n", max_size=40),
)
def test_rouge_of_any_script_is_that_of_rouge_score_with_the_same_words(said: str, reference: str) -> None:
    wanted = reference_scores(said, [reference], UnicodeTokenizer())
    assert rouge_scores(said, [reference]) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't saw_off No.7 at 3,5!", ["don", "t", "saw", "off", "no", "7", "at", "3", "5"]),
        ("Привет, МИР! Ёлка", ["привет", "мир", "ёлка"]),
        ("Ça coûte 3 €, Straße", ["ça", "coûte", "3", "straße"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),  # vowel signs are marks, which \w leaves out
        ("كتابٌ جديد", ["كتابٌ", "جديد"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("我爱北京。2024年", ["我", "爱", "北", "京", "2024", "年"]),
        ("ラーメンを食べる", ["ラーメン", "を", "食", "べ", "る"]),
        ("中文ABC混合", ["中", "文", "abc", "混", "合"]),
        ("สวัสดี ๑๒๓", ["ส", "วั", "ส", "ดี", "๑๒๓"]),
        ("Kran\u00adken a\u200bb co\u200dop", ["kranken", "a", "b", "coop"]),
    ],
)
def test_words_are_runs_of_letters_and_digits_of_any_script(text: str, words: list[str]) -> None:
    assert rouge_words(text) == words
    assert rouge_words(unicodedata.normalize("NFD", text)) == words
    assert rouge_scores(text, [text])[0] == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["我爱北京", "ひらがなをよむ", "สวัสดีครับ", "ພາສາລາວ", "ខ្មែរ", "မြန်မာ", "カタカナ"])
def test_scripts_without_blanks_are_cut_at_unicodes_default_boundaries(text: str) -> None:
    assert rouge_words(text) == [part for part in regex.split(r"\b", text, flags=regex.WORD | regex.V1) if part]


def test_a_rouge_metric_is_the_mean_over_answers() -> None:
    predictions = random_predictions(30, 2)
    pairs = zip(predictions.said, predictions.references, strict=True)
    wanted = np.mean([reference_scores(said, references) for said, references in pairs], axis=0)
    assert [point(variant, predictions) for variant in VARIANTS] == pytest.approx(wanted.tolist(), abs=1e-9)


# -- BLEU and chrF


def corpus_score(name: str, said: Sequence[str], streams: Sequence[Sequence[Any]]) -> float:
    """What sacreBLEU's own functions give."""
    if name == "bleu":
        return float(sacrebleu.corpus_bleu(said, streams).score)
    return float(sacrebleu.corpus_chrf(said, streams, word_order=2 if name == "chrf++" else 0).score)


@pytest.mark.parametrize("name", SACREBLEU)
def test_a_corpus_score_is_sacrebleus(name: str) -> None:
    for seed in range(10):
        predictions = random_predictions(20, seed, most=1)
        wanted = corpus_score(name, predictions.said.tolist(), [[text for (text,) in predictions.references]])
        assert point(name, predictions) == pytest.approx(wanted, abs=1e-9)
    assert 0 < wanted < 100


@pytest.mark.parametrize("name", SACREBLEU)
def test_answers_may_have_different_numbers_of_references(name: str) -> None:
    predictions = random_predictions(25, 3)
    assert len({len(references) for references in predictions.references}) == 3
    # a reference given twice changes neither score, so all can be given three
    filled = [(references * 3)[:3] for references in predictions.references]
    wanted = corpus_score(name, predictions.said.tolist(), [*zip(*filled, strict=True)])
    assert point(name, predictions) == pytest.approx(wanted, abs=1e-9)


TEXTS = st.text(alphabet="ab cd, .é我\n", max_size=30)


@pytest.mark.parametrize("name", SACREBLEU)
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_summed_statistics_give_the_corpus_score(name: str, pairs: list[tuple[str, list[str]]]) -> None:
    said, references = zip(*pairs, strict=True)
    predictions = predictions_of(said, references)
    sums = statistics_of(name, predictions).sum(axis=0)
    assert score_of(name, sums) == pytest.approx(point(name, predictions), abs=1e-9)


def test_the_scores_of_a_perfect_and_of_an_empty_text() -> None:
    perfect = predictions_of(["the barge carries coal"] * 2, [("the barge carries coal", "no")] * 2)
    silent = perfect.saying(["", ""])
    for name in SACREBLEU:
        assert point(name, perfect) == pytest.approx(100)
        assert point(name, silent) == 0
        assert np.isnan(point(name, perfect.take(np.array([], dtype=np.int64))))


def test_signatures_are_those_that_sacrebleu_gives_after_scoring() -> None:
    for predictions in (random_predictions(8, 1, most=1), random_predictions(8, 1)):
        streams = [[(*texts, None, None, None)[n] for texts in predictions.references] for n in range(3)]
        streams = [stream for stream in streams if any(text is not None for text in stream)]
        metrics = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF(), "chrf++": sacrebleu.CHRF(word_order=2)}
        for metric in metrics.values():
            metric.corpus_score(predictions.said.tolist(), streams)
        assert signatures(predictions) == {name: str(metric.get_signature()) for name, metric in metrics.items()}
    assert signatures(predictions)["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")


# -- exact matches, answers and lengths


def test_a_text_is_exact_if_it_is_one_of_the_references_but_for_white_space() -> None:
    said = ["I_TURN  I_WALK\n", "i_walk", "I_WALK.", "", "b"]
    references = [["I_TURN I_WALK"], ["I_WALK"], ["I_WALK"], [" "], ["a", "b"]]
    predictions = predictions_of(said, references)
    assert predictions.exact.tolist() == [True, False, False, True, True]
    assert point("exact-match", predictions) == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (ANSWER, "5 + 5 = 10 #### 10", "10"),
        (ANSWER, "#### 3, no: #### 1,234.", "1,234."),
        (ANSWER, "it is 10", None),
        (r"\d+", "3 boats, 40 goats", "40"),
        (r"(?:yes|no)", "yes and no", "no"),
        (r"answer: (\w+)|none", "answer: old", "old"),
        (r"answer: (\w+)|none", "answer: old, none", None),
        (r"x*", "xx", ""),
    ],
)
def test_the_answer_is_the_first_group_of_the_last_match(pattern: str, text: str, answer: str | None) -> None:
    assert answer_of(text, compiled(pattern)) == answer


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("72", "72"),
        (" 72. ", "72"),
        ("72.00", "72"),
        ("+1,234,567.50,", "1234567.5"),
        ("-007.10", "-7.1"),
        ("-0.0", "0"),
        ("0.25", "0.25"),
        ("1,00", "1,00"),  # no thousands
        ("1,0000", "1,0000"),
        ("1.2.3", "1.2.3"),
        ("9" * 6000, "9" * 6000),
        ("the  old\nsaw.", "the old saw."),
        ("Saw", "Saw"),
        ("", ""),
    ],
)
def test_numbers_are_compared_by_value_and_all_else_but_for_white_space(answer: str, value: str) -> None:
    assert comparable(answer) == value


def test_answers_are_right_where_gsm8ks_own_evaluation_says_so() -> None:
    def extracted(completion: str) -> str:  # grade_school_math/dataset.py: extract_answer
        match = re.compile(r"#### (\-?[0-9\.\,]+)").search(completion)
        return match.group(1).strip().replace(",", "") if match else "[invalid]"

    generator = random.Random(3)
    numbers = [generator.choice([-1, 1]) * generator.randrange(10**6) for _ in range(200)]
    references = [f"a sum\n#### {number:,}" for number in numbers]
    said = [generator.choice([f"#### {number}", f"#### {number + 1}", f"#### {number:,}", "10"]) for number in numbers]
    pairs = zip(said, references, strict=True)
    wanted = [extracted(one) != "[invalid]" and extracted(one) == extracted(other) for one, other in pairs]
    found = predictions_of(said, [[text] for text in references], r"#### (-?[\d.,]+)").answered
    assert found.tolist() == [[right, True] for right in wanted]
    assert 20 < sum(wanted) < 180


def test_texts_whose_references_have_no_answer_are_left_out() -> None:
    said = ["#### 5.0", "5", "#### 5", "#### 6"]
    references = [["#### 7", "#### 5"], ["#### 5"], ["five"], ["six", "#### 5"]]
    predictions = predictions_of(said, references, ANSWER)
    assert predictions.answered.tolist() == [[True, True], [False, True], [False, False], [False, True]]
    assert point("answer-match", predictions) == pytest.approx(1 / 3)
    assert np.isnan(point("answer-match", predictions.take(np.array([2]))))
    assert bootstrap(["answer-match"], predictions.take(np.array([2])), 1)["answer-match"].as_json()["value"] is None


def test_no_answer_is_not_an_empty_one() -> None:
    predictions = predictions_of(["nothing", "answer:"], [["answer: "]] * 2, r"answer:(.*)")
    assert predictions.answered.tolist() == [[False, True], [True, True]]


def test_answers_without_a_pattern_and_patterns_that_are_none_are_refused() -> None:
    with pytest.raises(FinetuneError, match="answer-match .* expected a pattern, found none"):
        point("answer-match", predictions_of(["5"], [["5"]]))
    with pytest.raises(FinetuneError, match=r"expected a regular expression .* found '#### \(': missing \)"):
        compiled("#### (")


def test_the_length_ratio_is_bleus() -> None:
    generator = random.Random(4)
    texts = [" ".join(generator.choices(["old", "red", "saw"], k=generator.randint(1, 9))) for _ in range(200)]
    predictions = predictions_of(texts[:50], [texts[50 + 3 * n : 53 + 3 * n] for n in range(50)])
    score = sacrebleu.corpus_bleu(texts[:50], [texts[50 + n :: 3] for n in range(3)])
    assert word_counts(predictions).sum(axis=0).tolist() == [score.sys_len, score.ref_len]
    assert shares(word_counts(predictions).sum(axis=0)) == pytest.approx(score.ratio)


# -- resamples, and the predictions themselves


def test_there_are_metrics_of_overlap_and_of_equality() -> None:
    guessed = {"perplexity", "bits-per-byte", "top-1-accuracy"}  # of the references' tokens
    assert set(metrics_of("texts")) == {*VARIANTS, *SACREBLEU, *guessed, "exact-match", "answer-match"}


@pytest.mark.parametrize("name", [*VARIANTS, *SACREBLEU, "exact-match", "answer-match"])
def test_resampled_metrics_are_those_of_the_answers_taken(name: str) -> None:
    predictions = random_predictions(25, 9)
    draws = np.random.default_rng(0).integers(0, 25, (12, 25))
    weights = np.stack([np.bincount(draw, minlength=25) for draw in draws]).astype(np.float64)
    attributes = registry.metrics.get(name).attributes
    if "from_rows" in attributes:
        values = weights @ attributes["from_rows"](predictions) / weights.sum(axis=-1)
    else:
        per_answer, combine = attributes["from_sums"]
        values = combine(weights @ per_answer(predictions))
    wanted = [point(name, predictions.take(draw)) for draw in draws]
    assert values.tolist() == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert np.nanstd(wanted) > 0


def test_answers_are_taken_with_all_that_belongs_to_them() -> None:
    predictions = TextPredictions.of(["a", "b"], [["x", "y"], ["z", "w"]], ["s", "t"], rows=[4, 9], pattern="p")
    assert predictions.references.shape == (2,)
    taken = predictions.take(np.array([1, 1, 0]))
    assert (taken.said.tolist(), taken.sources.tolist()) == (["b", "b", "a"], ["t", "t", "s"])
    assert taken.references.tolist() == [("z", "w"), ("z", "w"), ("x", "y")]
    assert (taken.rows.tolist(), taken.pattern, len(taken)) == ([9, 9, 4], "p", 3)


def test_answers_to_unknown_truths_can_be_taken_too() -> None:
    taken = TextPredictions.of(["a", "b"], [], ["s", "t"]).take(np.array([1]))
    assert (taken.said.tolist(), taken.references.shape, taken.rows.tolist()) == (["b"], (0,), [1])


def test_two_models_agree_where_they_write_exactly_the_same() -> None:
    one = predictions_of(["a saw", "A saw", ""], [["x"]] * 3)
    other = one.saying(["a saw", "a saw", " "])
    assert one.agrees(other).tolist() == [True, False, False]
    assert one.agrees(other).dtype == bool
    assert other.references is one.references


def test_what_was_judged_is_judged_anew_with_other_texts() -> None:
    predictions = predictions_of(["#### 1"], [["#### 2"]], ANSWER)
    names = ("rouge1", "exact-match", "answer-match")
    assert [point(name, predictions) for name in names] == [0, 0, 0]
    assert [point(name, predictions.saying(["#### 2"])) for name in names] == [1, 1, 1]
