"""The report, opened as a grader opens it: from a disk, in a real browser, with the network cut."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import artifact_tree
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from helpers.config import load_config
from helpers.files import ROOT, UserError, notebooks, write_atomic
from helpers.pictures.embed import picture
from helpers.report import notebook_pages
from helpers.report.front_page import build_report, headline, prices, profile
from helpers.report.notebook_pages import clean, notebook_page

PAGES = ("index", *(path.stem for path in notebooks()))


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    made = artifact_tree.make(tmp_path_factory.mktemp("report"))
    build_report(made)
    return made


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "the tests of the report need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page of the disk offline; what it asked for and complained about is checked at the end."""
    contexts, complaints, requests = [], [], []

    def open_page(path, width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"file://{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_pages_need_no_network(cfg, visit, name, width):
    """Trap 11: nbconvert's pages fetch require.js, MathJax and the widget manager. Nothing is wider than a phone."""
    page = visit(cfg.output_dir / "report" / f"{name}.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = page.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
    assert broken == 0
    assert page.locator("h1").count() == 1


def test_slider_goes_through_all_photos(cfg, visit):
    """Trap 11: a slider whose callback is Python is dead in an exported page."""
    page = visit(cfg.output_dir / "report" / "index.html")
    seen = []
    count = int(page.locator("#photo-slider").get_attribute("max")) + 1
    assert count == artifact_tree.PHOTOS
    for number in range(count):
        page.locator("#photo-slider").fill(str(number))
        seen.append(page.locator("#photo image").get_attribute("href"))
        assert page.locator("#photo-number").inner_text() == f"{number + 1} of {count}"
    assert len(set(seen)) == count
    page.get_by_role("button", name="Previous").click()
    assert page.locator("#photo image").get_attribute("href") == seen[-2]


def test_threshold_class_and_truth_change_the_boxes(cfg, visit):
    """Every detection of a photo has a score near .85 or near .25: the threshold must tell them apart."""
    page = visit(cfg.output_dir / "report" / "index.html")
    predicted, truth = page.locator("#photo .box.predicted"), page.locator("#photo .box.truth")
    assert (predicted.count(), truth.count()) == (3, 3)
    page.locator("#threshold").fill("0.05")
    assert predicted.count() == 6
    page.locator("#threshold").fill("1")
    assert (predicted.count(), truth.count()) == (0, 3)
    page.locator("#threshold").fill("0.05")
    page.locator("#only-class").select_option(label="person")
    assert (predicted.count(), truth.count()) == (2, 1)
    page.get_by_role("checkbox", name="ground truth").uncheck()
    assert (predicted.count(), truth.count()) == (2, 0)
    assert "2 predicted" in page.locator("#shown").inner_text()


def test_boxes_are_where_the_annotations_say(cfg, visit):
    """The drawn box is COCO's, in the photo's own pixels; the worst photo of the error analysis comes first."""
    page = visit(cfg.output_dir / "report" / "index.html")
    assert page.locator("#shown").inner_text().startswith("000000000103.jpg")  # a portrait
    assert page.locator("#photo").get_attribute("viewBox") == "0 0 240 320"
    drawn = page.eval_on_selector_all(
        "#photo .box.truth", "boxes => boxes.map(b => ['x', 'y', 'width', 'height'].map(k => +b.getAttribute(k)))"
    )
    annotations = pd.read_json(cfg.annotation_file("val2017"), typ="series")["annotations"]
    assert drawn == [row["bbox"] for row in annotations if row["image_id"] == 103]


@pytest.mark.parametrize("width", [1280, 390])
def test_names_in_the_slider_hide_no_other(cfg, visit, width):
    """On a phone the names are as large as ever and the photo is small: half a name helps nobody."""
    page = visit(cfg.output_dir / "report" / "index.html", width)
    page.locator("#threshold").fill("0.05")
    plates = page.eval_on_selector_all(
        "#photo .back", "plates => plates.map(p => ['x', 'y', 'width', 'height'].map(k => +p.getAttribute(k)))"
    )
    assert len(plates) >= 4
    x, y, w, h = np.array(plates).T
    across = np.minimum.outer(x + w, x + w) - np.maximum.outer(x, x)
    down = np.minimum.outer(y + h, y + h) - np.maximum.outer(y, y)
    hidden = np.clip(across, 0, None) * np.clip(down, 0, None) - np.diag(w * h)
    assert (hidden.max(axis=1) <= 0.16 * w * h).all()


def test_hostile_class_name_is_text(cfg, visit):
    """Trap 17: a class may be called <script>; a dialog would fail the fixture, and the name must be readable."""
    page = visit(cfg.output_dir / "report" / "index.html")
    assert artifact_tree.HOSTILE in page.locator("#evaluation ~ div table").first.inner_text()
    assert artifact_tree.HOSTILE in page.locator("#only-class").inner_text()
    assert any(artifact_tree.HOSTILE in text for text in page.locator("#photo text").all_text_contents())
    assert page.locator("script:not([type])").count() == 1
    page = visit(cfg.output_dir / "report" / "03_train.html")
    assert page.locator("script").count() == 0
    assert artifact_tree.HOSTILE in page.locator(".output_html").inner_text()
    assert artifact_tree.HOSTILE in page.locator(".output_stdout").inner_text()


def test_other_scripts_cannot_run(cfg, browser, tmp_path):
    """Were something to slip through the escaping, the page's policy still stops it."""
    text = (cfg.output_dir / "report" / "index.html").read_text()
    hurt = tmp_path / "index.html"
    hurt.write_text(
        text.replace(
            "<main>",
            "<main><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
            "<img src='http://127.0.0.1:9/x.png'>",
        )
    )
    page = browser.new_page()
    page.goto(f"file://{hurt}")
    assert page.title() != "run"
    assert page.locator("#photo .box").count() > 0
    page.close()


def test_headline_shows_the_start_checkpoint_beside_the_result(cfg, visit):
    """A fine-tuned number means nothing without the checkpoint that it started from."""
    table = pd.read_csv(cfg.output_dir / "metrics.csv")
    page = visit(cfg.output_dir / "report" / "index.html")
    shown = page.locator(".numbers").inner_text()
    for value in (*table["mAP"], *table["mAP50"]):
        assert f"{value:.3f}" in shown


def test_the_same_start_stands_once(cfg, tmp_path):
    """Ten runs from one checkpoint are ten rows of results and one start, not twenty rows."""
    table = pd.read_csv(cfg.output_dir / "metrics.csv")
    other = table.assign(run="other")
    other.loc[other["checkpoint"] != "start", "mAP"] += 0.001
    elsewhere = other[other["checkpoint"] == "start"].assign(run="elsewhere", mAP=0.123)
    write_atomic(tmp_path / "metrics.csv", pd.concat([table, other, elsewhere]).to_csv(index=False))
    rows = headline(cfg.with_(output_dir=tmp_path))["rows"]
    assert [row["run"] for row in rows if row["checkpoint"] == "start"] == [cfg.run_name, "elsewhere"]
    assert "other" in [row["run"] for row in rows]


def test_what_ap_costs(cfg, tmp_path, visit):
    """Each run beside its time and size; the figure only where there are two runs to compare."""
    page = visit(cfg.output_dir / "report" / "index.html")
    shown = page.locator("h3:has-text('What it costs') + .wide").inner_text()
    assert cfg.run_name in shown and "ms a photo" in shown and "other" in shown and "41.5" in shown
    assert page.get_by_alt_text("AP against time a photo and parameters").count() == 1
    for name in ("prices.csv", "prices.png"):
        (tmp_path / name).write_bytes((cfg.run_dir / name).read_bytes())
    assert len(prices(tmp_path)["charts"]) == 1
    write_atomic(tmp_path / "prices.csv", pd.read_csv(tmp_path / "prices.csv").head(1).to_csv(index=False))
    assert prices(tmp_path)["charts"] == [], "a figure of an earlier run of 04"


def test_links_lead_to_the_notebooks(cfg, visit):
    page = visit(cfg.output_dir / "report" / "index.html")
    page.get_by_role("link", name="04_evaluate").click()
    assert "What does 04_evaluate do?" in page.locator("h1").inner_text()
    page.get_by_role("link", name="The report").click()
    assert page.locator("#result").count() == 1


def test_prints_everything_but_the_controls(cfg, visit):
    page = visit(cfg.output_dir / "report" / "index.html")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})  # A4 without its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 680  # a column beyond the edge is lost on paper
    assert not page.locator(".controls").is_visible()
    assert page.locator("#photo").is_visible()


def test_a_figure_higher_than_a_page_is_printed_whole(tmp_path, visit):
    """Six rows of pictures were cut at the edge of the paper, and the rest of the sixth came out twice as large."""
    buffer = io.BytesIO()
    Image.new("RGB", (800, 1400), "red").save(buffer, "PNG")
    output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(buffer.getvalue()).decode()})
    cell = nbformat.v4.new_code_cell("figure", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "high.ipynb")
    page = visit(write_atomic(tmp_path / "high.html", notebook_page(tmp_path / "high.ipynb")[0]))
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})
    size = page.locator(".output_subarea img").bounding_box()
    assert size["height"] < 267 * 96 / 25.4 and size["width"] / size["height"] == pytest.approx(8 / 14, abs=0.01)


def test_nothing_is_there_yet(tmp_path, visit):
    """A report of an empty folder says what is missing and which notebook makes it, part by part."""
    cfg = load_config("demo", output_dir=tmp_path / "artifacts", data_dir=tmp_path / "data")
    page = visit(build_report(cfg))
    sentences = page.locator(".missing").all_inner_texts()
    assert len(sentences) >= 8
    assert any("03_train" in text for text in sentences) and any("04_evaluate" in text for text in sentences)


def test_a_profile_that_nobody_asked_for_is_not_missing(cfg, tmp_path):
    """The preset photos profiles nothing: "run 03_train first" sent its reader round in a circle."""
    assert len(profile(cfg.with_(profile=False))["rows"]) > 1, "what is there is shown"
    for asked, words in ((True, "breakdown.csv is missing"), (False, "No step was profiled")):
        with pytest.raises(UserError, match=words):
            profile(cfg.with_(profile=asked, output_dir=tmp_path))


def test_damaged_parts_take_only_their_own_place(tmp_path, visit):
    cfg = artifact_tree.make(tmp_path)
    (cfg.run_dir / "loss_curves.png").write_bytes(b"\x89PNG\r\n")
    (cfg.run_dir / "detections_val2017.json").write_text('[{"image_id": 101}]')
    (cfg.output_dir / "error_analysis" / "tide.json").write_text("{")
    (cfg.output_dir / "notebooks" / "02_sanity.ipynb").write_text("{")
    page = visit(build_report(cfg))
    assert page.locator(".missing").count() == 3
    assert page.locator(".numbers").count() == 1
    assert page.get_by_role("link", name="02_sanity").count() == 0


@pytest.mark.parametrize("odd", [{"image_id": 2**63}, {"bbox": [None, 1, 1, 1]}, {"score": None}])
def test_detections_that_are_no_numbers_take_only_their_own_place(tmp_path, odd):
    """NaN in the page is no JSON: the slider would stay empty without a word."""
    cfg = artifact_tree.make(tmp_path)
    file = cfg.run_dir / "detections_val2017.json"
    assert "its file is damaged" not in build_report(cfg).read_text()
    file.write_text(json.dumps([json.loads(file.read_text())[0] | odd]))
    page = build_report(cfg).read_text()
    assert "its file is damaged" in page and "NaN" not in page


def test_large_pictures_stay_under_the_limit(tmp_path, monkeypatch):
    """15 MB a file: a notebook with many large figures is written with smaller ones."""
    assert notebook_pages.LIMIT < 15_000_000
    monkeypatch.setattr(notebook_pages, "LIMIT", 1_000_000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(buffer.getvalue()).decode()})
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output] * 4)]), tmp_path / "big.ipynb"
    )
    page, _ = notebook_page(tmp_path / "big.ipynb")
    assert page.count("<img") == 4
    assert len(page.encode()) < 1_000_000


def test_widgets_become_text(tmp_path):
    """A progress bar that was a widget shows its last state; a control says that it needs a kernel."""
    view = "application/vnd.jupyter.widget-view+json"
    state = {
        "bar": {"model_name": "HBoxModel", "state": {"children": ["IPY_MODEL_a", "IPY_MODEL_b"]}},
        "a": {"model_name": "HTMLModel", "state": {"value": "100%"}},
        "b": {"model_name": "FloatProgressModel", "state": {}},
        "s": {"model_name": "IntSliderModel", "state": {}},
    }
    outputs = [
        nbformat.v4.new_output("display_data", {view: {"model_id": name}, "text/plain": "stale"})
        for name in ("bar", "s")
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x", outputs=outputs)],
        metadata={
            "widgets": {
                "application/vnd.jupyter.widget-state+json": {"state": state, "version_major": 2, "version_minor": 0}
            }
        },
    )
    nbformat.write(notebook, tmp_path / "w.ipynb")
    page, _ = notebook_page(tmp_path / "w.ipynb")
    assert "100%" in page and "needs a running kernel" in page and "stale" not in page


@pytest.mark.parametrize(
    "html",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<svg onload=alert(1)>",
        "<iframe src='http://a.b'></iframe>",
        "<a href='javascript:alert(1)'>x</a>",
        "<img src='https://a.b/c.png'>",
        "<style>@import 'http://a.b'</style>",
        "<p onclick=alert(1)>x</p>",
        "<table style='background: url(http://a.b/c)'><tr><td>x</table>",
        "<link rel=stylesheet href=http://a.b>",
    ],
)
def test_notebook_html_is_harmless(html):
    """An output may hold any HTML; nothing of it runs or fetches."""
    safe = clean(f"<div>{html}</div>")
    assert not re.search(
        r"alert\(1\)>|onerror|onload|onclick|javascript:|<script|<iframe|<svg|<style|<link|http|url\(", safe
    ), safe


def test_pages_tell_no_folder_of_this_machine(cfg, monkeypatch):
    """The report is handed in: neither the home folder nor the project's stands in it."""
    monkeypatch.setattr("pathlib.Path.home", lambda: cfg.output_dir.parent)
    page = build_report(cfg)
    for file in page.parent.iterdir():
        assert str(cfg.output_dir.parent) not in file.read_text(), file.name


def test_long_lists_are_folded(tmp_path):
    """The parameters and a table of all values are not what a reader came for."""
    parameters = nbformat.v4.new_code_cell("# Parameters\nepochs = None", metadata={"tags": ["parameters"]})
    tables = [
        nbformat.v4.new_output("display_data", {"text/html": pd.DataFrame({"a": range(rows)}).to_html()})
        for rows in (5, 60)
    ]
    nbformat.write(
        nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell("x", outputs=tables)]),
        tmp_path / "n.ipynb",
    )
    page, _ = notebook_page(tmp_path / "n.ipynb")
    assert page.count("<details>") == 2 and "<summary>Parameters</summary>" in page and "Table with 61 rows" in page


def test_tables_and_pictures_pass_the_cleaning():
    pixel = picture(_red_png(), 100)
    safe = clean(
        '<table class="dataframe"><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>'
        f'<img src="{pixel}" alt="b">'
    )
    assert "<th>a</th>" in safe and "<td>1</td>" in safe and f'src="{pixel}"' in safe


def _red_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_templates_fetch_nothing():
    """No address of the network stands in what the pages are made of."""
    for file in (ROOT / "helpers" / "report" / "templates").iterdir():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text())) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{file.name}: {addresses}"
