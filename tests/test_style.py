"""Figures: told apart by the colour-blind and in grey, named and described, and those that are committed not stale."""

import itertools

import altair as alt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.testing.compare import compare_images
from PIL import Image

from sglrlib import paths
from sglrlib.paths import ROOT
from sglrlib.recipes import recipe
from sglrlib.show import page, plots, style
from sglrlib.studies import gallery, published

# How dichromats see linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.
SEEN = {
    "by most people": np.eye(3),
    "without green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "without red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "without blue cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    "in grey": [[0.2126, 0.7152, 0.0722]] * 3,
}
TO_XYZ = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
RULES = ["PGD-AT", "PGD-AT+LS", "PGD-AT+TE", "PGD-AT+SGLR"]
CURVES = ["PGD-AT", "PGD-AT+SGLR"]


def lab(colour: object, seen: object) -> np.ndarray:
    """CIELAB of a colour as somebody sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / [0.9505, 1, 1.0889]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("group", [RULES, ["TRADES", "TRADES+SGLR"], ["Standard", *CURVES]], ids=",".join)
def test_methods_that_are_drawn_together_are_told_apart_by_colour(group, seen):
    """A distance of 10 is seen at a glance; about 2.3 is the least that can be seen."""
    for one, other in itertools.combinations(group, 2):
        distance = np.linalg.norm(lab(style.COLOURS[one], SEEN[seen]) - lab(style.COLOURS[other], SEEN[seen]))
        assert distance > 10, (one, other, seen)


def test_every_method_has_a_marker_of_its_own_and_curves_have_it():
    assert len(set(style.MARKERS.values())) == len(style.COLOURS)
    figure = plots.learning_curves(published.best(RULES))
    for axis in figure.axes:
        drawn = [
            line.get_marker() for line in axis.lines if line.get_label().startswith("_child") and line.get_lw() > 1
        ]
        assert {style.MARKERS[rule] for rule in RULES} <= set(drawn)


def test_names_at_the_ends_of_lines_neither_overlap_nor_are_too_pale():
    figure, ((axis,),) = style.grid(1, 1, 2.5)
    axis.set_ylim(0, 1)
    style.label_ends(axis, {name: (1.0, 0.5 + i / 1000, "#EBC14E") for i, name in enumerate("abcd")})
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axis.texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))
    assert all(1.05 / (0.05 + style.luminance(np.array(text.get_color()))) >= 4.5 for text in axis.texts)


def test_a_figure_says_what_it_shows_and_of_what_also_to_those_who_cannot_see_it(store):
    figure = plots.learning_curves(published.best(CURVES), "Figure B.6")
    said = style.alternative_text(figure)
    for expected in (
        "PGD-AT loses",
        "points of robust accuracy",
        "Figure B.6: CIFAR-10",
        "10,000 test images",
        "seeds",
    ):
        assert expected in said
    style.save(figure, "a")
    assert Image.open(paths.RUNS / "figures" / "a.png").text["Description"] == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(noise="symmetric", noise_rate=0.4), "40% of the labels drawn anew"),
        (dict(noise="human_worst", noise_rate=0.4), "labels given by people (worst)"),
        (dict(noise_rate=0.0), "no planted noise"),
        (dict(noise="gaussian", noise_rate=0.3), "30% Gaussian images"),
    ],
)
def test_the_small_print_says_what_is_wrong_with_the_training_data(changes, said):
    assert style.noise_in_words(recipe("cifar10", **changes)) == said


def test_what_the_notebooks_draw_of_committed_results_is_what_is_committed(tmp_path):
    """Where this fails, python -m sglrlib figures draws them anew.

    The tour's two are of a network trained for the picture: another one on a processor that rounds otherwise.
    """
    committed = {path.stem for path in (ROOT / "figures").glob("*.png")}
    for name, figure in gallery.drawn():
        committed.remove(name)
        figure.savefig(tmp_path / f"{name}.png", dpi=200)
        tol = 255 if name.startswith("00_tour") else 4
        differs = compare_images(str(ROOT / "figures" / f"{name}.png"), str(tmp_path / f"{name}.png"), tol=tol)
        assert differs is None, differs
    assert not committed


def test_a_chart_is_drawn_by_jupyterlab_and_is_a_picture_elsewhere(monkeypatch):
    shown = []
    monkeypatch.setattr(page, "display", lambda data, **how: shown.append((data, how)))
    figure, _ = style.grid(1, 1, 2.0)
    chart = alt.Chart(alt.sequence(0, 3, as_="x")).mark_point().encode(x="x:Q")
    page.show_interactive(chart, style.entitle(figure, "Three dots"))
    ((data, how),) = shown
    assert data["application/vnd.vegalite.v5+json"]["mark"]["type"] == "point"
    assert data["text/plain"] == how["metadata"]["image/png"]["alt"] == "Three dots."


def test_tables_put_the_best_in_bold_and_numbers_on_the_right():
    shown = page.as_html(pd.DataFrame({"word": ["a < b", "**so**"], "number": ["1.0 ± 0.2", "–"]}))
    assert "<b>so</b>" in shown and "a &lt; b" in shown and "col1" in shown.split("text-align: right")[0]
    right = [rule for rule in shown.split("</style>")[0].split("}") if "text-align: right" in rule]
    assert right and all("col1" in rule and "col0" not in rule for rule in right)
