"""The report of a preparation says everything that its JSON says, and shows what came from data as text."""

from __future__ import annotations

import copy
import html
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.registry import checks
from finetune.reports.next_steps import ADVICE, bins, longest_row, next_steps
from finetune.reports.preparation import FUNNEL, LABELS, LENGTHS, preparation_report
from finetune.reports.wording import difference, examples_table, many, share

EVIL = "<script>alert('x')</script> | ![p](https://evil.example/p.png) **b** $x$ \n# heading\n\n| a | b |\n"
BARE: dict[str, Any] = {"name": "x", "rows_read": 10, "rows_kept": 10}
PREPARED: dict[str, Any] = {**BARE, "tokens": {"rows_cut": 0}}


def full() -> dict[str, Any]:
    """A report with every key there is."""
    return {
        "name": "tickets", "task": "text-classification", "seed": 42, "source": ["a.csv", "b.csv"],
        "rows_read": 1433, "rows_kept": 1400, "dropped": {"missing_label": 13, "duplicate": 20},
        "cleaners": [
            {"name": "html", "rows_touched": 120, "rows_rejected": 4,
             "examples": [{"before": "<b>x</b> y", "after": "x y"}]},
            {"name": "urls", "rows_touched": 0, "rows_rejected": 0, "examples": []},
        ],
        "duplicates": {
            "exact": 20, "near": 12, "threshold": 0.8,
            "examples": [{"lines": [3, 88], "similarity": 0.86, "texts": ["order 12 today", "order 15 today"]}],
        },
        "leaks": 1,
        "leak_examples": [{"split": "test", "line": 9, "other_split": "train", "other_line": 88, "text": "where"}],
        "splits": {"train": 1120, "validation": 140, "test": 140},
        "split": {"name": "stratified", "train": 0.8, "validation": 0.1, "test": 0.1, "folds": None},
        "labels": {
            "rare": {"train": 20, "validation": 1, "test": 0},
            "refund": {"train": 1100, "validation": 139, "test": 140},
        },
        "target": {"train": {"min": -1.5, "mean": 0.25, "max": 3.0, "deviation": 1.125}},
        "augmented": {"rows": 300, "operations": {"synonyms": 180, "swap": 120}},
        "truncated": {"train": {"rows": 3, "tokens_lost": 120, "lines": [5, 9]}},
        "tokens": {
            "rows_cut": 3, "tokens_lost": 120, "entities_lost": 0, "unknown_rate": 0.001, "tokens_per_word": 1.3,
            "padding": 0.031, "batch_size": 16, "max_length": 128, "overflow": "truncate",
            "splits": {"train": {"total": 20000, "median": 16, "longest": 160}},
            "histogram": {"edges": [0, 80, 160, 240], "counts": [1300, 97, 3]},
        },
        "tokenizer": {"name": "bpe", "vocabulary": 8000},
        "warnings": [
            {"severity": "note", "check": "short-rows", "count": 3, "message": "3 rows are short.", "examples": []},
            {"severity": "error", "check": "conflicting-labels", "count": 2, "message": "2 texts have several labels.",
             "examples": [{"line": 3, "text": "stop", "labels": ["a", "b"]}, {"line": 7, "text": "go"}]},
            {"severity": "warning", "check": "imbalance", "count": 1, "message": "refund has most.", "examples": []},
        ],
    }  # fmt: skip


PICTURES = {FUNNEL: "funnel.png", LABELS: "labels.png", LENGTHS: "my lengths.png"}


def hostile(value: Any) -> Any:
    """The same report with every text, and every name that data can choose, made hostile."""
    if isinstance(value, str):
        return value if value in {"error", "warning", "note"} else EVIL
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return {key: hostile(item) for key, item in value.items()} if isinstance(value, dict) else value


def hostile_report() -> dict[str, Any]:
    report = hostile(full())
    for key in ("labels", "dropped", "truncated", "target"):
        report[key] = {EVIL: next(iter(report[key].values()))}
    report["augmented"]["operations"] = {EVIL: 300}
    report["tokens"]["splits"] = {EVIL: report["tokens"]["splits"]["train"]}
    report["splits"] = {"train": 1, EVIL: 2}
    report["warnings"][1]["examples"].append({EVIL: EVIL})
    return dict(report)


def rendered(markdown: str) -> str:
    markdown_it = pytest.importorskip("markdown_it")
    return str(markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def headings(markdown: str) -> list[str]:
    return re.findall(r"^##? (.*)", markdown, re.MULTILINE)


def section(markdown: str, title: str) -> str:
    return markdown.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_hostile_data_is_shown_as_text_in_every_section() -> None:
    page = rendered(preparation_report(hostile_report(), PICTURES))
    allowed = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ol", "li", "strong", "code", "img"}
    assert set(re.findall(r"</?([a-z0-9]+)", page)) == allowed
    assert re.findall(r'src="([^"]*)"', page) == ["funnel.png", "labels.png", "my%20lengths.png"]
    assert page.count("<h1>") == 1
    assert "heading</h" not in page.replace(html.escape(" ".join(EVIL.split())), "")
    assert page.count("<td>" + html.escape(" ".join(EVIL.split()), quote=False)) >= 8


@pytest.mark.parametrize("report", [full(), hostile_report(), BARE], ids=["full", "hostile", "bare"])
def test_every_row_of_every_table_has_as_many_cells_as_its_header(report: dict[str, Any]) -> None:
    tables = [block.splitlines() for block in preparation_report(report, {}).split("\n\n") if block.startswith("|")]
    assert len(tables) >= 2
    for lines in tables:
        assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(re.split(r"(?<!\\)\|", lines[0]))}
        assert re.fullmatch(r"\|( ---:? \|)+", lines[1])


def test_sections_come_in_the_order_in_which_a_reader_asks() -> None:
    assert headings(preparation_report(full(), PICTURES)) == [
        "tickets: data preparation", "Findings", "From the source to the splits", "Labels", "Target", "Duplicates",
        "Texts in two splits", "Tokens", "Cleaning", "Augmentation", "What to do next",
    ]  # fmt: skip


def test_a_report_without_optional_keys_has_no_empty_sections() -> None:
    markdown = preparation_report(BARE, {})
    assert headings(markdown) == ["x: data preparation", "From the source to the splits", "What to do next"]
    assert "**Nothing stands against training on this data.**" in markdown
    assert "1. Run `finetune prepare RECIPE`.\n" in markdown
    assert "Made from" not in markdown


@pytest.mark.parametrize("missing", sorted(full().keys() - BARE.keys()))
def test_any_optional_key_may_be_absent(missing: str) -> None:
    report = full()
    del report[missing]
    assert headings(preparation_report(report, PICTURES))[-1] == "What to do next"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "Nothing stands against training on this data."),
        ({"warnings": [{"severity": "note"}]}, "Nothing stands against training on this data: 1 note."),
        ({"warnings": [{"severity": "warning"}] * 2}, "Usable, but read the findings first: 2 warnings."),
        (
            {"warnings": [{"severity": "note"}, {"severity": "error"}]},
            "Do not trust this data yet: 1 error, 1 note.",
        ),
        ({"leaks": 3}, "Do not trust this data yet: see the table."),
        ({"leaks": 3, "dropped": {"leak": 3}, "rows_kept": 7}, "Nothing stands against training on this data."),
        ({"rows_kept": 9}, "Do not trust this data yet: see the table."),
        ({"splits": {"train": 9}}, "Do not trust this data yet: see the table."),
        ({"tokens": {"rows_cut": 1}}, "Usable, but look first at what is bold below."),
    ],
)
def test_the_verdict_follows_from_the_findings_and_counts(changes: dict[str, Any], verdict: str) -> None:
    blank = {"check": "c", "message": "m", "count": 1}
    report = {**BARE, **changes, "warnings": [{**blank, **finding} for finding in changes.get("warnings", [])]}
    assert preparation_report(report, {}).split("\n\n")[2] == f"**{verdict}**"


def test_the_first_table_answers_whether_the_data_can_be_trusted() -> None:
    lines = preparation_report(full(), {}).split("\n\n")[4].splitlines()[2:]
    assert lines == [
        "| Is every row accounted for? | yes: 1,400 kept + 33 dropped |",
        "| How much was dropped? | 33 rows (2.3%) |",
        "| Is a text in two splits? | **yes: 1 row** |",
        "| Is every label in every split? | **no: 1 of 2 miss one** |",
        "| Does the model read all of each row? | **no: 3 rows (0.2%) cut** |",
    ]


def test_rows_that_are_neither_kept_nor_dropped_are_shown() -> None:
    markdown = preparation_report({**BARE, "rows_kept": 6, "dropped": {"duplicate": 1}, "splits": {"train": 5}}, {})
    assert "| Is every row accounted for? | **no: +3 rows** |" in markdown
    assert "| **neither kept nor dropped** | **3** | 30.0% |" in markdown
    assert "| **kept, but in no split** | **1** |  |" in markdown


@pytest.mark.parametrize("in_train", [1120, 1420])
def test_rows_made_by_augmentation_are_no_gap_wherever_they_are_counted(in_train: int) -> None:
    report = {**full(), "splits": {"train": in_train, "validation": 140, "test": 140}}
    assert "accounted for? | yes" in preparation_report(report, {})


def test_findings_stand_by_severity_with_their_examples() -> None:
    found = section(preparation_report(full(), {}), "Findings")
    assert re.findall(r"^\| \**(error|warning|note)", found, re.MULTILINE) == ["error", "warning", "note"]
    assert "| **error** | conflicting-labels | 2 texts have several labels. | 2 |" in found
    assert "### Error: conflicting-labels\n\n| line | labels | text |\n" in found
    assert "| 3 | a, b | stop |\n| 7 |  | go |" in found
    assert "### Note" not in found


def test_the_funnel_holds_every_count() -> None:
    funnel = section(preparation_report(full(), PICTURES), "From the source to the splits")
    assert [line.split(" | ") for line in funnel.strip().splitlines()[2:10]] == [
        ["| **read**", "1,433", "100.0% |"],
        ["| dropped: duplicate", "-20", "1.4% |"],
        [r"| dropped: missing\_label", "-13", "0.9% |"],
        ["| **kept**", "1,400", "97.7% |"],
        ["| in train", "1,120", "78.2% |"],
        ["| in validation", "140", "9.8% |"],
        ["| in test", "140", "9.8% |"],
        ["| added to train by augmentation", "+300", " |"],
    ]
    assert "Split: stratified, train 0.8, validation 0.1, test 0.1." in funnel
    assert f"![{FUNNEL}](funnel.png)" in funnel


def test_labels_are_counted_by_split_with_shares_the_most_frequent_first() -> None:
    labels = section(preparation_report(full(), PICTURES), "Labels")
    assert "| 1 | refund | 1,100 (98.2%) | 139 (99.3%) | 140 (100.0%) | 1,379 (98.5%) |" in labels
    assert (
        "| 2 | rare | 20 (1.8%) | 1 (0.7%) | **0** | 21 (1.5%) |\n|  | **all** | 1,120 | 140 | 140 | 1,400 |" in labels
    )
    assert "several labels" not in labels
    assert "several labels" in section(preparation_report({**full(), "splits": {"train": 5}}, {}), "Labels")


@pytest.mark.parametrize(("count", "rows"), [(60, 60), (61, 60), (2000, 60)])
def test_more_than_sixty_labels_are_cut_to_both_ends(count: int, rows: int) -> None:
    labels = {f"label {n:04}": {"train": 5000 - n} for n in range(count)}
    found = section(preparation_report({**BARE, "labels": labels, "splits": {"train": 1}}, {}), "Labels")
    assert len(re.findall(r"^\| \d+ \|", found, re.MULTILINE)) == rows
    assert f"| {count} | label {count - 1:04} |" in found
    assert ("report.json` has all" in found) == (count > 60)
    assert (f"| … | {count - 60:,} more | … | … |" in found) == (count > 60)


def test_duplicates_and_leaks_are_shown_side_by_side() -> None:
    markdown = preparation_report(full(), {})
    assert "| lines | similarity | first text | second text |" in markdown
    assert "| 3, 88 | 0.86 | order **12** today | order **15** today |" in markdown
    assert "earlier one: 20. Texts that nearly repeat one (similarity 0.8 or more): 12." in markdown
    assert "| split | line | other split | other line | text |" in markdown
    assert "| test | 9 | train | 88 | where |" in markdown


def test_leaks_that_were_dropped_are_told_and_ask_for_nothing() -> None:
    report = {**PREPARED, "rows_kept": 8, "dropped": {"leak": 2}, "leaks": 2}
    assert "The rows of the earlier split were dropped." in preparation_report(report, {})
    assert next_steps(report) == ["Look through `dropped.jsonl`: 2 of 10 rows dropped.", "Run `finetune train RECIPE`."]


def test_tokens_targets_cleaners_and_augmentation_hold_their_numbers() -> None:
    markdown = preparation_report(full(), {})
    for line in (
        "| most tokens that the model reads at once (`model.max_length`) | 128 |",
        "| tokens that the tokenizer does not know | 0.10% |",
        "| tokens for a word | 1.30 |",
        "| padding in batches of 16 (`train.batch_size`) | 3.1% |",
        "| train | 20,000 | 16 | 160 | 3 | 120 | 5, 9 |",
        "| train | -1.5 | 0.25 | 3 | 1.125 |",
        "| html | 120 | 4 |",
        "| urls | 0 | 0 |",
        "| **&lt;b&gt;x&lt;/b&gt;** y | **x** y |",
        "| synonyms | 180 |",
    ):
        assert line in markdown
    assert "trained on the texts of train: bpe, 8,000 entries." in markdown
    assert "300 rows made for train beside its 1,120 real ones." in markdown


# What to do next


def finding(check: str, severity: str = "warning") -> dict[str, Any]:
    return {"severity": severity, "check": check, "count": 1, "message": "m", "examples": []}


def test_next_steps_name_settings_and_numbers() -> None:
    report = full()
    report["tokens"]["splits"]["train"]["longest"] = 128
    assert next_steps(report) == [
        "Set `data.leaks: drop-from-train`, or take rows out of the source: the text of 1 row of a later split is in "
        "an earlier one, too.",
        ADVICE["conflicting-labels"],
        ADVICE["imbalance"],
        ADVICE["missing-labels"],
        "Look at `near_duplicates.jsonl` (12 texts nearly repeating another); "
        "`data.near_duplicates: drop` keeps one of those that are alike.",
        "Raise `model.max_length` to 239 (enough for the longest row) if the model can read as much, or set "
        "`model.overflow: window`: cutting takes 120 tokens from 3 rows.",
        "Look through `dropped.jsonl`: 33 of 1,433 rows dropped.",
        "Then run `finetune prepare RECIPE` again.",
    ]


def test_next_steps_ask_for_nothing_that_was_done() -> None:
    done = {
        **BARE,
        "duplicates": {"exact": 3, "near": 4},
        "dropped": {"duplicate": 2, "conflicting_labels": 1, "near_duplicate": 4},
        "tokens": {"rows_cut": 0, "max_length": 128, "unknown_rate": None},
    }
    steps = " ".join(next_steps(done))
    assert "data.duplicates" not in steps
    assert "near_duplicates" not in steps
    assert "max_length" not in steps
    assert "data.duplicates: drop" in " ".join(next_steps({**done, "dropped": {"near_duplicate": 4}}))


def test_next_steps_come_from_errors_and_warnings_and_never_twice() -> None:
    assert next_steps({**PREPARED, "warnings": [finding("short-rows", "note")]}) == ["Run `finetune train RECIPE`."]
    twice = {**BARE, "warnings": [finding("missing-labels")], "dropped": {"missing_label": 1}, "rows_kept": 9}
    assert next_steps(twice).count(ADVICE["missing-labels"]) == 1
    other = next_steps({**PREPARED, "warnings": [finding("my-own"), finding("imbalance"), finding("x", "error")]})
    assert other == [
        ADVICE["imbalance"],
        "Do what the messages of the 2 other findings say.",
        "Then run `finetune prepare RECIPE` again.",
    ]


def test_a_check_points_to_no_file_and_to_nothing_to_train_on() -> None:
    report = full()
    del report["tokens"]
    assert next_steps(report)[1:] == [
        ADVICE["conflicting-labels"],
        ADVICE["imbalance"],
        ADVICE["missing-labels"],
        "Look at 12 texts nearly repeating another; `data.near_duplicates: drop` keeps one of those that are alike.",
        "See why 33 of 1,433 rows are dropped.",
        "Then run `finetune prepare RECIPE --check` again.",
    ]
    assert next_steps(BARE) == ["Run `finetune prepare RECIPE`."]
    assert next_steps(PREPARED) == ["Run `finetune train RECIPE`."]
    everything = next_steps({**report, "warnings": [finding(check) for check in ADVICE]})
    assert len(everything) == len(ADVICE) + 4
    assert ".jsonl" not in " ".join(everything)


def test_all_advice_is_for_a_check_that_there_is() -> None:
    assert set(ADVICE) - {"missing-values"} <= set(checks.names())


def test_a_poor_tokenizer_is_named() -> None:
    assert "does not know 5.0% of the tokens" in next_steps({**BARE, "tokens": {"unknown_rate": 0.05}})[0]
    assert "a word takes 4.2 tokens" in next_steps({**BARE, "tokens": {"tokens_per_word": 4.2}})[0]
    assert len(next_steps({**BARE, "tokens": {"unknown_rate": 0.01, "tokens_per_word": 3.0}})) == 1


@pytest.mark.parametrize(
    ("tokens", "longest"),
    [
        ({"max_length": 128, "splits": {"train": {"longest": 300}, "test": {"longest": 310}}}, 310),
        ({"max_length": 128, "splits": {"train": {"longest": 128}}}, 0),
        ({"max_length": 8, "histogram": {"edges": [0, 8, 16, 24], "counts": [5, 2, 0]}}, 15),
        ({"max_length": 8, "histogram": {"edges": [0, 8, 16], "counts": [5, 2, 1]}}, 23),
        ({"max_length": 8}, 0),
    ],
)
def test_the_longest_row_is_found_before_it_was_cut(tokens: dict[str, Any], longest: int) -> None:
    assert longest_row(tokens) == longest


def test_an_open_last_bin_gets_its_neighbours_width() -> None:
    assert bins({"edges": [0, 8, 16], "counts": [1, 2, 3]}) == ([0, 8, 16, 24], [1, 2, 3])
    assert bins({"edges": [5], "counts": [3]}) == ([5, 6], [3])
    assert bins({"edges": [0, 8], "counts": [1]}) == ([0, 8], [1])
    assert bins({}) == ([], [])


# How things are written


@pytest.mark.parametrize(
    ("part", "whole", "written"),
    [
        (1, 3, "33.3%"),
        (0, 5, "0.0%"),
        (5, 5, "100.0%"),
        (1, 10**6, "under 0.1%"),
        (9999, 10000, "over 99.9%"),
        (0, 0, "-"),
    ],
)
def test_a_share_rounds_nothing_away(part: int, whole: int, written: str) -> None:
    assert share(part, whole) == written


def test_counts_agree_with_their_noun() -> None:
    assert [many(0, "row"), many(1, "row"), many(1400, "row")] == ["0 rows", "1 row", "1,400 rows"]


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("a b c", "a x c", ("a **b** c", "a **x** c")),
        ("a b", "a b", ("a b", "a b")),
        ("a", "a b c", ("a", "a **b c**")),
        ("a  b", "a b", ("**a␣␣b**", "**a␣b**")),
        ("a\x00b", "a b", (r"**a\\x00b**", "**a␣b**")),
        ("e\u0301", "é", (r"**e\\u0301**", r"**\\xe9**")),
        ("你  好", "你 好", ("**你␣␣好**", "**你␣好**")),
        ("", "a", ("", "**a**")),
        ("<i> *x*", "*x*", (r"**&lt;i&gt;** \*x\*", r"\*x\*")),
    ],
)
def test_what_differs_between_two_texts_can_be_seen(first: str, second: str, shown: tuple[str, str]) -> None:
    assert difference(first, second) == shown


@pytest.mark.parametrize("ends", [("one", "two"), ("", " more")])
def test_texts_that_differ_far_behind_are_shown_from_there(ends: tuple[str, str]) -> None:
    first, second = difference("same " * 100 + ends[0], "same " * 100 + ends[1])
    assert first != second
    assert first.startswith("…")
    assert f"**{ends[1].strip()}**" in second
    assert len(difference("same " * 100, "same " * 100)[0]) == 239 + 1


@settings(deadline=None, max_examples=150)
@given(
    st.text(max_size=40) | st.text("*_ `|\\<&a.e\u0301\u3000", max_size=30),
    st.text(max_size=40) | st.text("*_ `|\\<&a.é ", max_size=30),
)
def test_two_texts_side_by_side_are_rendered_as_themselves(first: str, second: str) -> None:
    cells = difference(first, second)
    page = rendered(
        examples_table([{"texts": [first, second]}]) if first != second else f"| a |\n| --- |\n| {cells[0]} |"
    )
    assert set(re.findall(r"</?([a-z0-9]+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td", "strong"}
    shown = [html.unescape(re.sub("</?strong>", "", cell)) for cell in re.findall(r"<td>(.*?)</td>", page)]
    plain = [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", html.unescape(cell.replace("**", ""))) for cell in cells]
    assert shown[0] == plain[0]
    if first != second:
        assert shown[1] == plain[1]
        assert shown[0] != shown[1]


def test_a_report_is_drawn_without_changing_its_json() -> None:
    report = full()
    before = copy.deepcopy(report)
    assert preparation_report(report, PICTURES) == preparation_report(report, PICTURES)
    assert report == before
