import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from aniso.metrics import METRICS, LayerMetrics, cosine_histogram
from aniso.report import Report

HOSTILE = '<script>alert("x")</script> $x^2$ & \x00 [bold]'
PLOTS = ["level", "spread", "spectra", "ranks", "parts", "rogue"]
LOADING = {"link", "script", "img", "iframe", "object", "embed", "video", "audio", "source", "base"}


def layer(seed=0, dim=48, rows=300, gram=True, **counts):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dim)) + 0.3 * seed
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = rows * (rows - 1)
    shares = (unit.sum(0) ** 2 - (unit**2).sum(0)) / pairs
    sigma = np.linalg.svd(x, compute_uv=False)
    metrics = dict.fromkeys(METRICS, 0.5 + seed / 7)
    spectral = {"rankme": 40.123, "effective_rank": 30.5, "participation_ratio": 20.25}
    spectral["isoscore"] = 0.41
    metrics |= spectral if gram else dict.fromkeys(spectral, math.nan)
    metrics |= {"mean_cosine": float(shares.sum()), "std_cosine": 0.1, "relative_drift": 1 / 3}
    empty = {"zero_rows": 0, "nonfinite_rows": 0, "masked_rows": 0}
    return LayerMetrics(
        dim=dim,
        counts={"rows": rows, **empty, **counts},
        metrics=metrics,
        contributions=shares,
        singular_values=sigma if gram else None,
        resolution_floor=float(sigma[0]) * 1e-7 if gram else None,
    )


def stack(count, prefix="model.layers."):
    names = ["model.embed_tokens", *(f"{prefix}{index}" for index in range(count - 1))]
    return {name: layer(seed=index % 5) for index, name in enumerate(names)}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, ids, and the text between the tags."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.rows = [], [], []
        self.feed(html)
        self.ids = Counter(value for _, attrs in self.tags for k, value in attrs if k == "id")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text.append(data)
        if self.tags and self.tags[-1] == ("th", [("scope", "row")]) and data.strip():
            self.rows.append(data)

    def figures(self):
        return sum(tag == "svg" for tag, _ in self.tags)


def not_a_number(value):
    raise ValueError(f"{value} is not JSON")


def test_import_loads_no_drawing_library():
    code = (
        "import sys, aniso.report; "
        "sys.exit(int(any(name in sys.modules for name in ('matplotlib', 'jinja2', 'rich'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_results_have_the_published_shape():
    report = Report({"a": layer(), "b": layer(1, gram=False)}, {"model": "m"})
    results = report.results()
    assert list(results) == ["schema", "layers", "provenance"]
    assert results["schema"] == 1
    first, second = results["layers"]
    assert set(first) == {"name", "dim", "counts", "metrics", "resolution_floor"}
    assert set(second) == {"name", "dim", "counts", "metrics"}
    assert first["dim"] == 48
    assert first["counts"]["rows"] == 300


def test_json_is_strict_and_loses_nothing():
    value = 0.1 + 0.2 * 1e-9
    base = layer()
    metrics = base.metrics | {"mean_cosine": value, "rankme": math.nan, "stable_rank": math.inf}
    where = {
        "when": datetime(2026, 1, 2, 3, 4, 5),
        "file": Path("dir/x.npy"),
        "loss": np.float32(0.5),
        "nan": math.nan,
        "shape": np.array([3, 4]),
        "names": {"b", "a"},
        "nested": {"ok": True, "none": None, "pair": (1, 2)},
    }
    text = Report({"a": replace(base, metrics=metrics)}, where).to_json()
    read = json.loads(text, parse_constant=not_a_number)
    found = read["layers"][0]["metrics"]
    assert found["mean_cosine"] == value
    assert found["rankme"] is None
    assert found["stable_rank"] is None
    assert read["provenance"] == {
        "when": "2026-01-02T03:04:05",
        "file": "dir/x.npy",
        "loss": 0.5,
        "nan": None,
        "shape": [3, 4],
        "names": ["a", "b"],
        "nested": {"ok": True, "none": None, "pair": [1, 2]},
    }


def test_layers_keep_their_order_everywhere():
    layers = {name: layer() for name in ("embeddings", "z.10", "z.9", "a.0")}
    report = Report(layers, {})
    assert [entry["name"] for entry in report.results()["layers"]] == list(layers)
    assert [str(cell) for cell in report.table().columns[0].cells] == list(layers)
    page = Page(report.to_html())
    assert page.rows == list(layers) * 3


def test_page_loads_nothing_from_outside():
    page = Page(Report(stack(7), {"model": "m"}).to_html())
    assert not {tag for tag, _ in page.tags} & LOADING
    for _, attrs in page.tags:
        for name, value in attrs:
            assert name not in ("src", "srcset", "data", "action") and not name.startswith("on")
            if name.endswith("href"):
                assert value.startswith("#")
    style = "".join(page.text)
    assert "@import" not in style
    assert "://" not in style
    assert not re.search(r"url\((?!#)", Report(stack(3), {}).to_html())


def test_page_is_small_and_always_the_same():
    layers = stack(7)
    report = Report(layers, {"model": "m"})
    assert report.to_html() == report.to_html()
    assert len(report.to_html().encode()) < 500_000


def test_48_layers_with_everything_stay_small():
    layers = stack(48)
    x = np.random.default_rng(0).standard_normal((300, 8)) + 0.3
    found = cosine_histogram(x, bins=200)
    html = Report(layers, {}, distributions=dict.fromkeys(layers, found)).to_html()
    assert Page(html).figures() == len(PLOTS) + 1
    assert len(html.encode()) < 2_000_000


@pytest.mark.parametrize("width", [8, 22, 60, 100])
@pytest.mark.parametrize("count", [3, 7, 48, 200])
def test_trends_fit_and_follow_the_values(width, count):
    from aniso.report._table import BARS, plain_text, sparkline

    layers = {f"h.{i}": layer(seed=i % 5) for i in range(count)}
    assert max(map(len, plain_text(Report(layers, {}).trends(60), 60).splitlines())) <= 60
    line = sparkline(list(range(count)), width)
    assert len(line) == min(count, width)
    assert (line[0], line[-1]) == (BARS[0], BARS[-1]) and list(line) == sorted(line)
    assert sparkline([1.0, math.nan, 2.0, 1.5], width)[:4] == "▁ █▅"


def test_trends_of_few_layers_are_none():
    assert Report({"a": layer(), "b": layer()}, {}).trends() is None
    assert set(Report(stack(3), {}).trends().columns[1].cells) != set()


def test_every_plot_is_drawn_and_ids_are_unique():
    page = Page(Report(stack(7), {}).to_html())
    assert page.figures() == len(PLOTS)
    assert all(page.ids[f"figure-{key}"] == 1 for key in PLOTS)
    assert [name for name, times in page.ids.items() if times > 1] == []
    for _, attrs in page.tags:
        for _, value in attrs:
            for target in re.findall(r"^#(.+)|url\(#([^)]+)\)", value or ""):
                assert page.ids["".join(target)] == 1


def test_no_stand_in_colour_reaches_the_page():
    html = Report(stack(7), {}).to_html()
    assert re.findall(r"#a[123][0-9a-f]{2}5a", html) == []
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    for scheme in re.findall(r":root \{ (--ink[^}]+)\}", html):
        assert used - {"--paper", "--soft", "--note", "--edge"} <= set(
            re.findall(r"--[\w-]+(?=:)", scheme)
        )
    assert len(re.findall(r":root \{ --ink", html)) == 2


def test_hostile_names_are_text():
    report = Report({"e": layer(), HOSTILE: layer(zero_rows=1)}, {HOSTILE: HOSTILE}, (HOSTILE,))
    html = report.to_html()
    page = Page(html)
    assert "<script" not in html.lower()
    assert sum(text.strip() == HOSTILE for text in page.text) == 3
    assert ("title", HOSTILE) in [attr for _, attrs in page.tags for attr in attrs]
    assert "[bold]" in str(report)
    assert json.loads(report.to_json())["layers"][1]["name"] == HOSTILE


def test_names_no_font_knows_are_drawn():
    page = Page(
        Report({"模型.层.0": layer(), "模型.层.1": layer(1), "모델": layer()}, {}).to_html()
    )
    assert page.figures() == len(PLOTS)


def test_notes_name_the_rows_that_were_left_out():
    layers = {"a": layer(masked_rows=5), "b": layer(nonfinite_rows=3, masked_rows=5)}
    layers["c"] = layer(nonfinite_rows=1, masked_rows=5)
    text = " ".join(Page(Report(layers, {}, ("A sample.",)).to_html()).text)
    assert "A sample." in text
    assert "Skipped because not finite: 4 rows, in b (3), c (1)." in text
    assert "Masked and left out: 5 rows of every layer." in text
    assert "Zero, so" not in text
    footer = str(Report(layers, {})).splitlines()[-1]
    assert footer == "Rows over all layers: 4 not finite (skipped), 15 masked."
    assert "Rows over" not in str(Report({"a": layer()}, {}))


def test_glossary_explains_every_metric():
    text = " ".join(Page(Report(stack(2), {}).to_html()).text)
    for metric in METRICS.values():
        assert metric.formula in text
        assert metric.reference in text


def test_unknown_metric_is_shown_without_a_broken_link():
    base = layer()
    page = Page(Report({"a": replace(base, metrics=base.metrics | {"own_key": 1.5})}, {}).to_html())
    assert "metric-own_key" not in page.ids
    assert any("1.5000" in text for text in page.text)


def test_without_gram_the_spectra_are_left_out_with_a_reason():
    html = Report({"a": layer(gram=False), "b": layer(1, gram=False)}, {}).to_html()
    page = Page(html)
    assert page.figures() == len(PLOTS) - 2
    assert "no singular values to draw" in html
    assert "directions with 50%" not in html
    assert "Figure 4." in html
    assert "Figure 5." not in html


@pytest.mark.parametrize("count", [1, 2, 3, 33, 80])
def test_any_number_of_layers(count):
    long = "model.language_model.decoder.layers."
    page = Page(Report(stack(count, prefix=long), {}).to_html())
    assert page.figures() == len(PLOTS)
    ticks = [text for text in page.text if re.fullmatch(r"\d+", text.strip())]
    assert ticks or count < 3


def test_rank_deficient_spectrum_and_undefined_layers():
    base = layer()
    sigma = base.singular_values.copy()
    sigma[20:] = 0.0
    undefined = replace(
        base,
        metrics=dict.fromkeys(base.metrics, math.nan),
        contributions=np.full(base.dim, math.nan),
        singular_values=np.zeros(base.dim),
    )
    layers = {"a": replace(base, singular_values=sigma), "b": undefined, "c": base}
    assert Page(Report(layers, {}).to_html()).figures() == len(PLOTS)
    alone = Report({"b": undefined}, {})
    assert Page(alone.to_html()).figures() == 0
    assert "nan" not in str(alone).lower()


def test_negative_mean_cosine_is_drawn():
    base = layer()
    shares = np.where(np.arange(48) < 24, -0.01, 0.001)
    metrics = base.metrics | {"mean_cosine": float(shares.sum())}
    shown = replace(base, contributions=shares, metrics=metrics)
    assert Page(Report({"a": shown, "b": base}, {}).to_html()).figures() == len(PLOTS)


def test_report_without_layers():
    report = Report({}, {})
    assert "No layers" in report.to_html()
    assert json.loads(report.to_json())["layers"] == []
    assert "layer" in str(report)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 130, 200])
@pytest.mark.parametrize("rows", [7, 33_712, 1_234_567_890])
def test_table_fits(width, rows):
    from aniso.report._table import plain_text

    layers = {name: replace(value, counts={"rows": rows}) for name, value in stack(12).items()}
    text = plain_text(Report(layers, {}).table(width), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for index in range(11):
        assert sum(line.split()[0].endswith(f"layers.{index}") for line in lines if line) == 1
    if width >= 80:
        assert "40.123" in text or "40.12" in text


def test_table_tells_long_names_apart():
    names = [f"model.language_model.layers.{index}.mlp.experts.down_proj" for index in range(3)]
    text = str(Report({name: layer() for name in names}, {}))
    assert max(map(len, text.splitlines())) <= 80
    assert {"…0", "…1", "…2"} <= {line.split()[0] for line in text.splitlines() if line.strip()}


def test_save_writes_both_files(tmp_path):
    report = Report(stack(3), {})
    written = report.save(tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["results.json", "report.html"]
    assert written[0].read_text(encoding="utf-8") == report.to_json()
    assert written[1].read_text(encoding="utf-8") == report.to_html()
    assert sorted(path.name for path in written[0].parent.iterdir()) == [
        "report.html",
        "results.json",
    ]


def test_names_that_are_not_utf8_are_saved(tmp_path):
    written = Report({"a": layer()}, {"sources": ["caf\udce9.npy"]}).save(tmp_path)
    assert len(written) == 2
    assert json.loads(written[0].read_bytes())["provenance"]["sources"] == ["caf\udce9.npy"]


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_report_extra(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    report = Report(stack(3), {})
    assert [path.name for path in report.save(tmp_path)] == ["results.json"]
    assert 'pip install "aniso[report]"' in report.missing_extra()
    with pytest.raises(ImportError, match=missing):
        report.to_html()
    assert "mean" in str(report)


def test_nothing_is_missing_here():
    assert Report({}, {}).missing_extra() is None


def test_users_matplotlib_settings_do_not_matter_and_stay():
    import matplotlib

    layers = stack(3)
    plain = Report(layers, {}).to_html()
    with matplotlib.rc_context({"axes.facecolor": "red", "svg.fonttype": "path"}):
        assert Report(layers, {}).to_html() == plain
        assert matplotlib.rcParams["axes.facecolor"] == "red"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.25, math.nan], ["0.2500", "–"]),
        ([0.00281, 0.001], ["0.002810", "0.001000"]),
        ([123.456, 1.5], ["123.46", "1.50"]),
        ([1.25e-5, 0.0], ["1.250e-05", "0.000e+00"]),
        ([12_345_678.0], ["1.235e+07"]),
        ([0.0, 0.0], ["0", "0"]),
        ([], []),
    ],
)
def test_numbers_of_a_column_are_alike(values, shown):
    from aniso.report._plain import column

    assert column(values) == shown


@pytest.mark.parametrize(
    ("rows", "shown"),
    [(0, "0"), (999_999, "999999"), (1_234_567, "1.23M"), (12_345_678_901, "12.3G")],
)
def test_counts_fit_six_characters(rows, shown):
    from aniso.report._plain import count

    assert count(rows, narrow=True) == shown
