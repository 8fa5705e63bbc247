"""What came from data is shown in a report as text, never as markup."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from finetune.evaluation.sections import Matrix, Table
from finetune.reports.markdown import (
    escape,
    evaluation_report,
    gates_table,
    interval,
    quantization_report,
    table,
)
from finetune.tasks import open_task

HOSTILE = {
    "tag": "<b>bold</b> and <img src=x onerror=alert(1)>",
    "script": "<script>alert('x')</script>",
    "unclosed-tag": "<!-- <a href='x'",
    "entity": "&lt;b&gt; &amp; &#60;i&#62; &nbsp; AT&T",
    "link": "[click](https://evil.example/x)",
    "link-reference": "[a]: https://evil.example [a][a]",
    "image": "![picture](https://evil.example/pixel.png)",
    "autolink": "<https://evil.example>",
    "bare-address": "see https://evil.example/x?a=1&b=2, ftp://evil.example or www.evil.example and WWW.EVIL.EXAMPLE",
    "mail": "<me@evil.example>",
    "mention": "thanks @octocat and @org/team",
    "pipes": "a | b || c |",
    "escaped-pipe": r"a \| b \\| c \\\| d",
    "code": "`code` ``two `` ` and ```fence",
    "emphasis": "*one* **two** _three_ __four__ ~~five~~ ~six~",
    "formula": "costs $5 and $x^2$ and $$y$$",
    "backslash": "C:\\new\\<b> \\",
    "heading": "# no heading",
    "list": "- no list",
    "quote": "> no quote",
    "rule": "---",
    "footnote": "text[^1]",
    "task": "[ ] undone [x] done",
}


def rendered(markdown: str) -> str:
    """The report as HTML, by a renderer of CommonMark with tables, strike-through and raw HTML on."""
    markdown_it = pytest.importorskip("markdown_it")
    return str(markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def cells_of(line: str) -> list[str]:
    """Split a table's line as GitHub does: at every pipe that no backslash stands before."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return re.split(r"(?<!\\)\|", line[1:-1])


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_is_rendered_as_itself_and_brings_no_tag(text: str) -> None:
    page = rendered(table(["text", "next"], [[escape(text), "1"]]))
    assert set(re.findall(r"</?([a-z0-9]+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert [html.unescape(cell) for cell in cells] == [text, "1"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_escaped_text_holds_no_bare_markup(text: str) -> None:
    escaped = escape(text)
    assert not re.search(r"[<>]", escaped)
    assert not re.search(r"&(?!(amp|lt|gt);)", escaped)
    unpaired = re.sub(r"\\[!-/:-@\[-`{-~]", "", escaped)  # without each backslash and what it escapes
    assert not re.search(r"[\\`*_\[\]|~$@]|://|www\.", unpaired, re.IGNORECASE)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, with 3.5 % (and more)!", "plain text, with 3.5 % (and more)!"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("1 < 2 & 3", "1 &lt; 2 &amp; 3"),
        ("first line\nsecond\r\n\tthird\u2028fourth\u2029", "first line second third fourth"),
        ("\x00\x1b[31mred\x07\x7f\x9b", r"\[31mred"),
        ("safe\u202egnp.exe", "safe gnp.exe"),
        ("a\u2066b\u2069c\u200fd\ufeffe\u00adf\u200bg", "a b c d e f g"),
        ("half \ud83d a pair", "half a pair"),
        ("Grüße, 你好 👋", "Grüße, 你好 👋"),
        ("see http://x.org", r"see http\://x.org"),
        ("www.x.org", r"www\.x.org"),
        ("@user", r"\@user"),
        ("", ""),
    ],
)
def test_escape_writes_exactly_this(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_every_character_below_256_comes_out_on_one_line_without_control_characters() -> None:
    escaped = escape("".join(map(chr, range(256))), limit=1000)
    assert escaped.isprintable()
    assert html.unescape(re.sub(r"\\(.)", r"\1", escaped)).startswith("!\"#$%&'()*+,-./0123456789:;<=>?@ABC")


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert escape("x" * 240) == "x" * 240
    assert escape("x" * 241) == "x" * 239 + "…"
    assert escape("*" * 300) == r"\*" * 239 + "…"
    assert escape("<" * 9, limit=4) == "&lt;&lt;&lt;…"


def test_a_table_aligns_texts_left_and_numbers_right() -> None:
    assert table(["name", "a", "b"], [["x", "1", "2"], ["y", "3", "4"]]) == (
        "| name | a | b |\n| --- | ---: | ---: |\n| x | 1 | 2 |\n| y | 3 | 4 |"
    )
    assert table(["p", "q"], [], text_columns=2) == "| p | q |\n| --- | --- |"


def test_an_interval_is_written_with_three_digits() -> None:
    assert interval({"value": 0.91249, "low": 0.8, "high": 1.0}) == "0.912 (0.800 to 1.000)"


def test_gates_tell_what_was_found_and_by_how_much() -> None:
    gates = [
        {"gate": "accuracy >= 0.85", "value": 0.9, "margin": 0.05, "holds": True},
        {"gate": "log-loss <= 0.1", "value": 0.25, "margin": -0.15, "holds": False},
    ]
    assert gates_table(gates).splitlines()[2:] == [
        "| accuracy &gt;= 0.85 | 0.9000 | +0.0500 | holds |",
        "| log-loss &lt;= 0.1 | 0.2500 | -0.1500 | **fails** |",
    ]


# Whole reports whose every text is hostile

EVIL = HOSTILE["script"] + " | " + HOSTILE["image"] + " \n# heading\n\n| a | b |\n"


def scores(*names: str) -> dict[str, dict[str, float]]:
    return {name: {"value": 0.5, "low": 0.25, "high": 0.75} for name in names}


def evaluation(**changes: Any) -> dict[str, Any]:
    names = ("accuracy", "log-loss")
    return {
        "task": "text-classification",
        "recipe": EVIL,
        "model": "org/model",
        "seed": 7,
        "run_fingerprint": "0123456789abcdef",
        "split": "test",
        "rows": 3,
        "metrics": scores(*names),
        "baselines": {"majority": scores(*names), "tfidf-logreg": scores(*names)},
        "gains": {"majority": scores(*names), "tfidf-logreg": scores(*names)},
        "intervals": {"unit": "row", "units": 3, "level": 0.95, "resamples": 1000},
        "labels": [EVIL, "plain"],
        "confusion": [[1, 0], [1, 1]],
        "per_label": {label: {"rows": 2, **scores("precision", "recall", "f1")} for label in (EVIL, "plain")},
        "worst": [{"line": 4, "text": EVIL, "label": EVIL, "predicted": "plain", "probability_of_label": 0.125}],
        "truncated": {"rows": 2, "tokens_lost": 31},
        "dropped": {"unknown_label": 4, "blank_text": 1},
        "seen_in_training": 2,
        "gates": [{"gate": "accuracy >= 0.4", "value": 0.5, "margin": 0.1, "holds": True}],
        **changes,
    }


def quantization() -> dict[str, Any]:
    speed = {"before": {"median": 2.0, "p95": 3.0}, "after": {"median": 1.0, "p95": 1.5}, "speedup": 2.0}
    return {
        "recipe": EVIL, "backend": "onnx-int8", "split": "test", "rows": 3,
        "before": scores("accuracy"), "after": scores("accuracy"),
        "drop": scores("accuracy"), "agreement": 0.995, "agreement_means": "the same label",
        "size_bytes": {"before": 90_000_000, "after": 23_000_000},
        "size_ratio": 0.2556, "speed": {"threads": 1, "tokens": 12, "batch_1": speed, "batch_32": speed},
        "gates": [{"gate": "quantized.agreement >= 0.9", "value": 0.995, "margin": 0.095, "holds": True}],
    }  # fmt: skip


def shown(report: dict[str, Any], pictures: dict[str, str]) -> str:
    """The report as its task shows it."""
    _, spec = open_task(report["task"], {})
    return evaluation_report(report, spec.sections(report), pictures, spec.worst_means)


REPORTS = {
    "evaluation": lambda: shown(evaluation(), {"Confusion matrix": "test-confusion-matrix.png"}),
    "quantization": lambda: quantization_report(quantization()),
}


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_every_row_of_every_table_has_as_many_cells_as_its_header(make: Any) -> None:
    tables = [block.splitlines() for block in make().split("\n\n") if block.startswith("|")]
    assert len(tables) >= 3
    for lines in tables:
        assert len(lines) >= 3
        assert {len(cells_of(line)) for line in lines} == {len(cells_of(lines[0]))}, lines[0]
        assert re.fullmatch(r"\|( ---:? \|)+", lines[1])


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_a_rendered_report_shows_hostile_data_as_text(make: Any) -> None:
    markdown = make()
    page = rendered(markdown)
    allowed = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "code"}
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    if "test-confusion-matrix.png" in markdown:
        assert re.findall(r"<img[^>]*>", page) == ['<img src="test-confusion-matrix.png" alt="Confusion matrix" />']
        tags -= {"img"}
    assert tags <= allowed
    assert "heading</h1>" not in page
    assert page.count("<h1>") == 1


def test_a_reader_can_still_read_the_hostile_data() -> None:
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", rendered(REPORTS["evaluation"]()))]
    assert " ".join(EVIL.split()) in cells


def test_an_evaluation_holds_its_numbers() -> None:
    report = shown(evaluation(), {})
    number = "0.500 (0.250 to 0.750)"
    assert "3 rows, task text-classification. In brackets: 95% bootstrap intervals (1000 resamples of rows)." in report
    assert f"| accuracy | {number} | {number} | {number} |" in report
    assert "| metric | over majority | over tfidf-logreg |" in report
    assert f"| accuracy | {number} | {number} |\n" in report
    assert f"| plain | 2 | {number} | {number} | {number} |" in report
    assert "- 2 rows were cut to the model's length and lost 31 tokens." in report
    assert r"- Rows that could not be scored: unknown\_label 4, blank\_text 1." in report
    assert "- **2 rows have a text that the model was trained on:** the score is flattered." in report
    assert "| plain | 0.125 | 4 |" in report


def test_an_evaluation_without_caveats_gates_and_baselines_has_no_empty_sections() -> None:
    bare = evaluation(
        baselines={}, gains={}, gates=[], worst=[], dropped={}, seen_in_training=0,
        truncated={"rows": 0, "tokens_lost": 0},
    )  # fmt: skip
    report = shown(bare, {})
    assert [line.rpartition(": ")[2] for line in re.findall(r"^#+ .*", report, re.MULTILINE)] == [
        "evaluation on test",
        "## By label",
    ]
    assert "| metric | model |\n| --- | ---: |\n| accuracy | 0.500 (0.250 to 0.750) |" in report


def test_an_evaluation_of_a_file_with_a_hostile_name_shows_the_name_and_its_picture() -> None:
    name = "my (new) rows | <b> 100%"
    page = rendered(shown(evaluation(split=name), {"Confusion matrix": f"{name}-confusion-matrix.png"}))
    assert f": evaluation on {html.escape(name)}</h1>" in page
    assert "<img src=" in page
    assert "<b>" not in page


def test_the_name_of_a_metric_from_a_path_cannot_break_the_table() -> None:
    name = "evaluate:my|*metric*.py"
    names = {key: {key: scores(name) for key in ("majority",)} for key in ("baselines", "gains")}
    report = shown(evaluation(metrics=scores(name), **names), {})
    first = next(block for block in report.split("\n\n") if block.startswith("| metric")).splitlines()
    assert [len(cells_of(line)) for line in first] == [3, 3, 3]
    assert "<em>" not in rendered(report)


def test_the_learning_curves_stand_with_what_was_found_in_them() -> None:
    findings = [
        {"name": "overfitting", "step": 1200, "evidence": "the loss rose", "change": ["more rows", "set train.x_y: 2"]},
        {"name": "fine", "step": None, "evidence": "nothing", "change": []},
    ]
    report = evaluation_report(evaluation(diagnosis=findings), [], {}, "Why.", "loss.png")
    assert (
        "## Learning curves\n\n![Loss by step](loss.png)\n\n"
        "- **overfitting** from step 1,200: the loss rose. To change: more rows; set train.x\\_y: 2.\n"
        "- **fine**: nothing.\n\n## The 1 worst"
    ) in report
    assert "loss.png" not in evaluation_report(evaluation(diagnosis=findings), [], {}, "Why.")


def test_a_finding_that_names_a_hostile_metric_is_shown_as_text() -> None:
    finding = {"name": "overfitting", "step": 3, "evidence": f"{EVIL} rose", "change": [EVIL]}
    page = rendered(evaluation_report(evaluation(diagnosis=[finding]), [], {}, "Why."))
    assert set(re.findall(r"</?([a-z0-9]+)", page)) <= {
        *("h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong")
    }


def test_a_quantization_holds_its_numbers() -> None:
    report = quantization_report(quantization())
    assert "- Both models agree (the same label) in 99.5% of the cases." in report
    assert "- Weights: 90.0 MB before, 23.0 MB after (ratio 0.26)." in report
    assert "| latency, batch 1 (ms) | 2.0 (p95 3.0) | 1.0 (p95 1.5) | 2.00 |" in report


def test_what_is_not_defined_is_said_to_be_so() -> None:
    nothing = {"value": None, "low": None, "high": None}
    undefined = {name: {"pearson": nothing} for name in ("metrics",)}
    report = shown(evaluation(**undefined, baselines={}, gains={}), {})
    assert "| pearson | not defined |" in report
    gate = {"gate": "pearson >= 0.5", "value": None, "margin": None, "holds": False}
    assert "| pearson &gt;= 0.5 | not defined |  | **fails** |" in gates_table([gate])


def test_a_section_of_a_task_becomes_a_table_with_its_note() -> None:
    section = Table(
        "By *type*", ["type", "rows", "F1"], [["a|b", 3, {"value": 0.5, "low": 0.25, "high": 0.75}]], "Strict."
    )
    matrix = Matrix("Pairs", ["a"], [[1]], "What is said in place of what.")
    others = [Table("Empty", ["a"], [[None], [0.25]]), matrix]
    report = evaluation_report(evaluation(), [section, *others], {"Pairs": "test-pairs.png"}, "Why.")
    assert "![Pairs](test-pairs.png)\n\nWhat is said in place of what." in report
    assert r"## By \*type\*" in report
    assert "Strict.\n\n| type | rows | F1 |" in report
    assert r"| a\|b | 3 | 0.500 (0.250 to 0.750) |" in report
    assert "|  |\n| 0.250 |" in report
