"""Pictures are written whole, are PNG, come out equal for equal input, and take every label."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest

from finetune.evaluation.sections import Histogram, Scatter
from finetune.reports import plots
from finetune.reports.plots import MAX_LABELS_WITH_NUMBERS, draw_sections, plot_confusion, plot_loss_curve
from finetune.training.curves import Curve
from finetune.training.diagnosis import Finding

LOG: list[dict[str, Any]] = [
    *({"step": n, "epoch": 0, "loss": 2.0 / n, "gradient_norm": 1.0, "learning_rate": 0.1} for n in range(1, 9)),
    {"step": 4, "epoch": 0, "validation": {"loss": 0.7, "accuracy": 0.5}, "best": True},
    {"step": 8, "epoch": 1, "validation": {"loss": 0.9, "accuracy": 0.6}, "best": False},
    {"step": 8, "restored_step": 4, "because": "all epochs done"},
]


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, each with its checksum checked (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = [], 8
    while position < len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        name, data = content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", content[position + 8 + length : position + 12 + length])
        assert checksum == zlib.crc32(name + data)
        chunks.append((name, data))
        position += 12 + length
    assert (chunks[0][0], chunks[-1]) == (b"IHDR", (b"IEND", b""))
    return chunks


def darkness(content: bytes) -> int:
    """How much of a picture is not white."""
    import matplotlib.image

    return int((matplotlib.image.imread(io.BytesIO(content))[..., :3] < 0.9).any(axis=-1).sum())


def draw(folder: Path, kind: str) -> bytes:
    target = folder / "reports" / f"{kind}.png"
    if kind == "loss":
        plot_loss_curve(Curve.of(LOG), target)
    else:
        plot_confusion(["a", "b", "c"], [[5, 0, 1], [0, 0, 0], [2, 1, 30]], target)
    return target.read_bytes()


@pytest.mark.parametrize("kind", ["loss", "confusion"])
def test_a_picture_is_a_valid_png_with_nothing_left_beside_it(tmp_path: Path, kind: str) -> None:
    content = draw(tmp_path, kind)
    assert darkness(content) > 1000
    assert not {name for name, _ in chunks_of(content)} & {b"tIME", b"tEXt", b"iTXt", b"zTXt"}  # no date, no version
    assert [path.name for path in (tmp_path / "reports").iterdir()] == [f"{kind}.png"]


@pytest.mark.parametrize("kind", ["loss", "confusion"])
def test_a_picture_that_is_drawn_again_has_the_same_bytes(tmp_path: Path, kind: str) -> None:
    assert draw(tmp_path, kind) == draw(tmp_path, kind)


@pytest.mark.parametrize(
    "lines",
    [
        [{**line, "step": line["step"] + 1} for line in LOG],
        LOG[:8] + LOG[-1:],
        LOG[8:],
        LOG[:-1],
        [*LOG[:-1], {**LOG[-1], "restored_step": 8}],
    ],
    ids=["other-steps", "no-validation", "no-training", "not-restored", "restored-elsewhere"],
)
def test_the_loss_curve_shows_training_validation_and_the_restored_step(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    usual = draw(tmp_path, "loss")
    target = tmp_path / "other.png"
    plot_loss_curve(Curve.of(lines), target)
    chunks_of(target.read_bytes())
    assert target.read_bytes() != usual


def log_of(steps: int, every: int, metrics: dict[str, float]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "loss": 2 / step + step % 7 / 50, "gradient_norm": 1.0, "learning_rate": 1 / step})
        if step % every == 0:
            lines.append({"step": step, "validation": {"loss": 0.5 + step / steps, **metrics}})
    return lines


@pytest.mark.parametrize("steps", [1, 5, 5000])
def test_the_loss_curve_of_any_length_is_drawn_with_a_line_for_every_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    metrics = {"accuracy": 0.5, "f1-macro": 0.25, "perplexity": 30.0}
    plot_loss_curve(Curve.of(log_of(steps, max(1, steps // 5), metrics)), tmp_path / "x.png")
    losses, shares, other, rate = figures[0].axes
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["loss", "validation", "validation", "learning rate"]
    assert rate.get_xlabel() == "optimizer step"
    smoothed = ["training, mean of 250 steps"] if steps == 5000 else []
    assert losses.get_legend_handles_labels()[1] == ["training, each step", *smoothed, "validation"]
    assert shares.get_legend_handles_labels()[1] == ["accuracy", "f1-macro"]
    assert other.get_legend_handles_labels()[1] == ["perplexity"]
    assert len(losses.lines[0].get_xdata()) == len(rate.lines[0].get_xdata()) == steps
    marked = [line.get_marker() for line in (losses.lines[0], shares.lines[0])]
    assert marked == ["" if steps == 5000 else "o", "o"]


def test_the_step_where_overfitting_begins_is_shaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    curve = Curve.of(LOG)
    for findings in ([Finding("unstable", "", (), 3)], [Finding("fine", ""), Finding("overfitting", "", (), 4)]):
        plot_loss_curve(curve, tmp_path / "x.png", findings)
    plain, shaded = (figure.axes[0] for figure in figures)
    assert len(plain.patches) == 0
    assert [(patch.get_x(), patch.get_width()) for patch in shaded.patches] == [(4, 4)]
    assert "overfitting from step 4" in shaded.get_legend_handles_labels()[1]


@pytest.mark.parametrize("name", ["evaluate:./$x^2.py", "evaluate:./$\\frac{1}$.py", "evaluate:./" + "x" * 300 + ".py"])
def test_a_metric_of_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    plot_loss_curve(Curve.of(log_of(30, 5, {name: 0.5})), tmp_path / "loss.png")
    width, height = struct.unpack(">II", chunks_of((tmp_path / "loss.png").read_bytes())[0][1][:8])
    assert max(width, height) < 1500


def test_the_confusion_matrix_is_coloured_by_the_share_of_the_true_label(tmp_path: Path) -> None:
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    labels = [f"l{n}" for n in range(MAX_LABELS_WITH_NUMBERS + 1)]  # so many that the counts are not written
    diagonal = [[3 if i == j else 0 for j in range(len(labels))] for i in range(len(labels))]
    plot_confusion(labels, diagonal, few)
    plot_confusion(labels, [[cell * 100 for cell in row] for row in diagonal], many)
    assert few.read_bytes() == many.read_bytes()


def test_the_counts_are_written_into_the_cells_of_a_small_matrix(tmp_path: Path) -> None:
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    plot_confusion(["a", "b"], [[3, 0], [0, 3]], few)
    plot_confusion(["a", "b"], [[300, 0], [0, 300]], many)
    assert few.read_bytes() != many.read_bytes()


@pytest.mark.parametrize(
    "label",
    ["$", "$5", "$x^2$", r"$\frac{1}$", r"\$", r"$\$", "a_b^c{", "%", "<b>", "two\nlines", "x" * 500],
    ids=["dollar", "price", "formula", "bad-formula", "escaped", "mixed", "braces", "percent", "tag", "lines", "long"],
)
def test_any_label_can_be_drawn(tmp_path: Path, label: str) -> None:
    plot_confusion([label, "b"], [[1, 0], [0, 1]], tmp_path / "c.png")
    assert darkness((tmp_path / "c.png").read_bytes()) > 1000


@pytest.mark.parametrize(
    "label", ["退款", "עברית", "👋", "a\x00b\x07", " "], ids=["cjk", "hebrew", "emoji", "nul", "blank"]
)
def test_a_label_that_the_font_does_not_have_is_drawn_without_warnings(tmp_path: Path, label: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion([label, "b"], [[1, 0], [0, 1]], tmp_path / "c.png")
    chunks_of((tmp_path / "c.png").read_bytes())


def test_a_dollar_is_no_formula(tmp_path: Path) -> None:
    """`$x$` as a formula has no dollars and is narrower than as text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    from finetune.reports.plots import plain_label

    def width(text: str) -> float:
        return float(TextPath((0, 0), text, prop=FontProperties(size=9)).get_extents().width)

    assert width(plain_label("$x$")) > 1.5 * width("$x$")


def test_a_matrix_of_many_labels_stays_within_bounds(tmp_path: Path) -> None:
    labels = [f"label number {n}" for n in range(80)]
    plot_confusion(labels, [[int(i == j) for j in range(80)] for i in range(80)], tmp_path / "c.png")
    width, height = struct.unpack(">II", chunks_of((tmp_path / "c.png").read_bytes())[0][1][:8])
    assert max(width, height) < 2500


def test_pictures_whose_titles_differ_in_other_letters_alone_have_files_of_their_own(tmp_path: Path) -> None:
    scatters = [Scatter(title, [0.0, 1.0], [0.0, 1.0], "x", "y") for title in ("оценка", "балл", "a b", "a-b")]
    found = draw_sections(scatters, tmp_path, "test")
    assert list(found) == ["оценка", "балл", "a b", "a-b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(found.values()))
    assert len(set(found.values())) == 4


def test_a_histogram_of_several_series_has_them_over_each_other(tmp_path: Path) -> None:
    one = Histogram("Similarity", [0.1, 0.2, 0.2], "cosine")
    two = Histogram("Both", {"positives": [0.9, 0.8], "random": [0.1, 0.2]}, "cosine")
    assert list(draw_sections([one, two], tmp_path, "test").values()) == ["test-similarity.png", "test-both.png"]
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
