"""Pictures of a preparation: PNGs, equal for equal reports, readable for one label and for thousands."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest

from finetune.reports import preparation_plots
from finetune.reports.plots import save_figure
from finetune.reports.preparation import FUNNEL, LABELS, LENGTHS
from finetune.reports.preparation_plots import draw_preparation, plot_funnel, plot_labels, plot_lengths

BARE: dict[str, Any] = {"name": "x", "rows_read": 100, "rows_kept": 90, "dropped": {"duplicate": 10}}
SPLITS = {"train": 72, "validation": 9, "test": 9}


def labels_of(names: list[str]) -> dict[str, Any]:
    return {"splits": SPLITS, "labels": {name: {"train": 8 + n, "validation": 1} for n, name in enumerate(names)}}


def lengths_of(**changes: Any) -> dict[str, Any]:
    tokens = {"max_length": 16, "histogram": {"edges": [0, 8, 16, 24], "counts": [5, 30, 2]}, **changes}
    return {**BARE, "tokens": tokens}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, to ask them what they show."""
    figures: list[Any] = []

    def keep(figure: Any, target: Path) -> None:
        figures.append(figure)
        save_figure(figure, target)

    monkeypatch.setattr(preparation_plots, "save_figure", keep)
    return figures


def texts(figure: Any) -> list[str]:
    """Every text of a figure: ticks, titles, numbers, legend."""
    from matplotlib.text import Text

    return list(dict.fromkeys(text.get_text() for text in figure.findobj(Text) if text.get_text()))


def size_of(path: Path) -> tuple[int, int]:
    import matplotlib.image

    image = matplotlib.image.imread(io.BytesIO(path.read_bytes()))
    assert (image[..., :3] < 0.9).any()
    return image.shape[1], image.shape[0]


def test_what_the_report_has_data_for_is_drawn(tmp_path: Path) -> None:
    assert draw_preparation(BARE, tmp_path) == {FUNNEL: "funnel.png"}
    everything = {**lengths_of(), **labels_of(["a"])}
    files = draw_preparation(everything, tmp_path / "all")
    assert files == {FUNNEL: "funnel.png", LABELS: "labels.png", LENGTHS: "lengths.png"}
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(files.values())
    empty = {**BARE, "labels": {}, "tokens": {"histogram": {"edges": [], "counts": []}}}
    assert draw_preparation(empty, tmp_path) == {FUNNEL: "funnel.png"}


def test_equal_reports_give_equal_bytes(tmp_path: Path) -> None:
    report = {**lengths_of(), **labels_of(["a", "b"])}
    for folder in ("one", "two"):
        draw_preparation(report, tmp_path / folder)
    for name in ("funnel.png", "labels.png", "lengths.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    draw_preparation({**report, "rows_kept": 80}, tmp_path / "two")
    assert (tmp_path / "one" / "funnel.png").read_bytes() != (tmp_path / "two" / "funnel.png").read_bytes()


def test_the_funnel_names_every_step_with_its_count(tmp_path: Path, drawn: list[Any]) -> None:
    report = {**BARE, "splits": SPLITS, "augmented": {"rows": 30}, "rows_read": 1100, "rows_kept": 1090}
    plot_funnel(report, tmp_path / "f.png")
    shown = texts(drawn[0])
    steps = ["read", "dropped: duplicate", "kept", "in train", "in validation", "in test", "made for train"]
    assert [text for text in shown if text in steps] == steps
    assert {"1,100", "10 (0.9%)", "1,090 (99.1%)", "72 (6.5%)", "30"} <= set(shown)


def test_bars_of_the_funnel_stand_where_their_rows_are(tmp_path: Path, drawn: list[Any]) -> None:
    report = {**BARE, "dropped": {"blank": 4, "duplicate": 6}, "splits": SPLITS, "augmented": {"rows": 30}}
    plot_funnel(report, tmp_path / "f.png")
    bars = [(bar.get_x(), bar.get_width()) for bar in drawn[0].axes[0].patches]
    assert bars == [(0, 100), (94, 6), (90, 4), (0, 90), (0, 72), (72, 9), (81, 9), (72, 30)]


def test_many_reasons_become_one_bar_and_a_few_rows_can_be_seen(tmp_path: Path, drawn: list[Any]) -> None:
    reasons = {f"reason {n}": n for n in range(1, 31)}
    plot_funnel({**BARE, "rows_read": 10**6, "rows_kept": 10**6 - 465, "dropped": reasons}, tmp_path / "f.png")
    names = [text for text in texts(drawn[0]) if text.startswith("dropped")]
    assert len(names) == 12
    assert names[0] == "dropped: reason 30"
    assert names[-1] == "dropped: 19 more reasons"
    assert min(bar.get_width() for bar in drawn[0].axes[0].patches) >= 0.003 * 10**6


def test_nothing_read_is_drawn_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_funnel({"rows_read": 0, "rows_kept": 0}, tmp_path / "f.png")
        plot_labels({"labels": {"a": {"train": 0}}}, tmp_path / "l.png")
        plot_labels({"labels": {str(n): {"train": 0} for n in range(70)}}, tmp_path / "m.png")
    assert size_of(tmp_path / "f.png")[0] == 960


@pytest.mark.parametrize("count", [1, 2, 60, 61, 2000])
def test_any_number_of_labels_gives_a_picture_that_fits_a_page(tmp_path: Path, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_labels(labels_of([f"label number {n}" for n in range(count)]), tmp_path / "l.png")
    width, height = size_of(tmp_path / "l.png")
    assert width == 960
    assert 200 <= height <= 2000


def test_few_labels_are_named_with_their_counts_the_most_frequent_first(tmp_path: Path, drawn: list[Any]) -> None:
    plot_labels(labels_of(["rare", "middle", "frequent"]), tmp_path / "l.png")
    shown = texts(drawn[0])
    assert [text for text in shown if text in {"rare", "middle", "frequent"}] == ["frequent", "middle", "rare"]
    assert {"11", "10", "9", "train", "validation", "test"} <= set(shown)


def test_many_labels_show_their_ends_and_which_split_lacks_some(tmp_path: Path, drawn: list[Any]) -> None:
    plot_labels(labels_of([f"label {n}" for n in range(100)]), tmp_path / "l.png")
    shown = texts(drawn[0])
    assert any("most: label 99 (108); least: label 0 (9)" in text for text in shown)
    assert "not in test: 100 labels" in shown
    assert not any(text.startswith("not in train") for text in shown)
    assert drawn[0].axes[0].get_yscale() == "linear"


def test_very_unequal_labels_get_a_logarithmic_scale(tmp_path: Path, drawn: list[Any]) -> None:
    labels = {f"label {n}": {"train": 100_000 // (n + 1) ** 2 + 1} for n in range(100)}
    plot_labels({"labels": labels}, tmp_path / "l.png")
    assert drawn[0].axes[0].get_yscale() == "symlog"
    assert {"count (logarithmic)", "10,000"} <= set(texts(drawn[0]))


def test_labels_that_cannot_be_written_are_shown_by_their_number(tmp_path: Path, drawn: list[Any]) -> None:
    names = ["$x^2$ and $y", "card_payment_wrong_exchange_rate_12", "\x00", "ελληνικά", "退款", "line\nbreak"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_labels(labels_of(names), tmp_path / "l.png")
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == [
        "line break", "no. 2", "ελληνικά", "no. 4", "card_payment_wron…ange_rate_12", r"\$x^2\$ and \$y",
    ]  # fmt: skip


def test_lengths_have_a_line_where_the_model_stops_reading(tmp_path: Path, drawn: list[Any]) -> None:
    plot_lengths(lengths_of(rows_cut=2), tmp_path / "l.png")
    axes = drawn[0].axes[0]
    assert "model.max_length: 16; 2 rows cut" in texts(drawn[0])
    assert [list(line.get_xdata()) for line in axes.lines] == [[16, 16]]
    assert axes.get_xlim() == (0, 24)


@pytest.mark.parametrize(
    ("most", "end", "text"),
    [(20, 20.4, "model.max_length: 20"), (33, 16, "model.max_length: 33 (further right)")],
)
def test_a_line_behind_the_longest_row_is_drawn_only_if_it_is_near(
    tmp_path: Path, drawn: list[Any], most: int, end: float, text: str
) -> None:
    plot_lengths(lengths_of(max_length=most, histogram={"edges": [0, 8, 16], "counts": [1, 2]}), tmp_path / "l.png")
    assert drawn[0].axes[0].get_xlim() == (0, pytest.approx(end))
    assert text in texts(drawn[0])


def test_a_few_very_long_rows_do_not_flatten_the_rest(tmp_path: Path, drawn: list[Any]) -> None:
    counts = [500, 499, *[0] * 97, 1]
    plot_lengths(lengths_of(histogram={"edges": list(range(0, 1010, 10)), "counts": counts}), tmp_path / "l.png")
    assert drawn[0].axes[0].get_xlim() == (0, 20)
    assert "tokens (1 longer row, up to 1,000, not shown)" in texts(drawn[0])


def test_lengths_without_a_limit_have_no_line(tmp_path: Path, drawn: list[Any]) -> None:
    plot_lengths({"tokens": {"histogram": {"edges": [0, 8], "counts": [3, 1]}}}, tmp_path / "l.png")
    assert len(drawn[0].axes[0].lines) == 0
    assert drawn[0].axes[0].get_xlim() == (0, 16)
