"""The sliders of notebooks 04 and 05 where a student moves them: JupyterLab with a kernel, in a real browser, without
a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from helpers.config import load_config
from helpers.download.prepare import prepare
from helpers.files import ROOT

NOTHING = re.compile(r"\b0 predicted")
PATIENCE = 400  # seconds; a shared machine can be slow, a quiet one needs a tenth
SETTINGS = {  # of JupyterLab: every output is in the page, and no news is fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A student's folder: 04 and 05 with parameters, a dozen scenes, and the shipped checkpoint in the place of a
    trained one.
    """
    root = tmp_path_factory.mktemp("lab")
    values = {
        "data_dir": str(root / "data"),
        "output_dir": str(root / "artifacts"),
        "max_train_images": 1,
        "max_val_images": 12,
        "image_size": 128,
        "batch_size": 4,
        "num_workers": 0,
    }
    cfg = load_config("demo", **values)
    prepare(cfg)
    shutil.copytree(ROOT / cfg.model, cfg.run_dir / "checkpoint_best")
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    for name in ("04_evaluate", "05_error_analysis"):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        place = next(k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        injected = nbformat.v4.new_code_cell(f"# Parameters\n{lines}", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(place + 1, injected)
        nbformat.write(notebook, root / f"{name}.ipynb")
    for name, values in SETTINGS.items():
        file = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    return root


@pytest.fixture(scope="module")
def server(folder):
    """JupyterLab as ``make lab`` starts it, on the student's folder: its address and its token."""
    places = {
        name: str(folder / "jupyter" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ip=127.0.0.1",
        "--port=0",
        "--no-browser",
        "--allow-root",
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={
                **os.environ,
                **places,
                "JUPYTER_PREFER_ENV_PATH": "1",
                "NO_ALBUMENTATIONS_UPDATE": "1",
                "OMP_NUM_THREADS": "2",
            },
        )
    try:
        description = Path(places["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{process.pid}.json"
        deadline = time.monotonic() + PATIENCE
        while not description.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.1)
        time.sleep(0.2)
        yield json.loads(description.read_text())
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def page(server):
    """A browser's page; nothing but the server on loopback was asked for."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(30_000)
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        yield opened
        browser.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((server["url"], "data:", "blob:"))] == []


def run_all(page: Page, server: dict, name: str) -> None:
    """Open a notebook, Run > Run All Cells, and wait for what it closes with."""
    page.goto(f"{server['url']}lab/tree/{name}.ipynb?token={server['token']}&reset")
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=PATIENCE * 1000)
    started = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").first
    for _ in range(5):  # a page that is still being laid out closes the menu again
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(AssertionError):
            expect(started).not_to_have_text("[ ]:", timeout=10_000)
            break
    last = page.locator(".jp-Notebook .jp-CodeCell").last.locator(".jp-OutputArea-output")
    failed = page.locator(".jp-Notebook .jp-OutputArea-output").filter(
        has_text=re.compile(r"^\w*(Error|Exception)\b|Traceback")
    )
    expect(last.or_(failed).first).to_be_attached(timeout=PATIENCE * 1000)
    assert failed.count() == 0, failed.first.inner_text()
    expect(page.locator(".widget-image")).to_have_count(1)


def picture(page: Page) -> str:
    """A checksum of the JPEG that is on the screen."""
    data = page.locator(".widget-image").evaluate(
        "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"
    )
    assert bytes(data[:2]) == b"\xff\xd8"
    return hashlib.sha256(bytes(data)).hexdigest()


def another_picture(page: Page, than: str) -> str:
    """The checksum once it is not ``than`` any more: the picture follows its caption."""
    deadline = time.monotonic() + 30
    while (now := picture(page)) == than and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert now != than, "the picture did not change"
    return now


def caption(page: Page):
    return page.locator(".widget-html").filter(has_text="predicted").last


def predicted(page: Page) -> int:
    return int(caption(page).inner_text().split(" predicted")[0].split()[-1])


def drag(page: Page, label: str, to: float) -> None:
    """Take the handle of a slider, and let it go at a fraction of its length."""
    slider = page.locator(".widget-slider").filter(has=page.get_by_text(label, exact=True))
    slider.scroll_into_view_if_needed()
    handle, line = slider.locator(".noUi-handle").bounding_box(), slider.locator(".noUi-base").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(line["x"] + to * line["width"], line["y"] + line["height"] / 2, steps=5)
    page.mouse.up()


def test_only_who_has_the_token_comes_in(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server['url']}api/contents", timeout=60)
    assert refused.value.code == 403 and len(server["token"]) > 20
    assert server["url"].startswith("http://127.0.0.1:")


def test_slider_and_threshold_of_04(page, server):
    """A callback that raises, a widget that does not match the front end's version: the notebook still runs, the
    slider is dead.
    """
    run_all(page, server, "04_evaluate")
    expect(caption(page)).to_contain_text("photo 1 of 12")
    first = picture(page)
    width, natural = page.locator(".widget-image").evaluate("image => [image.clientWidth, image.naturalWidth]")
    assert width <= natural, "stretched to the cell's width, a portrait is higher than the screen"
    drag(page, "photo", 1.0)
    expect(caption(page)).to_contain_text("photo 12 of 12")
    last = another_picture(page, first)
    page.get_by_role("button", name="next").click()
    expect(caption(page)).to_contain_text("photo 1 of 12")
    assert another_picture(page, last) == first and page.locator(".widget-image").count() == 1
    before = predicted(page)
    drag(page, "score from", 0.0)
    expect(caption(page)).not_to_contain_text(re.compile(rf"\b{before} predicted"))
    assert predicted(page) > before and another_picture(page, first)
    drag(page, "score from", 1.0)
    expect(caption(page)).to_contain_text(NOTHING)


def test_error_filter_of_05(page, server, folder):
    """On the detections that 04 has just written."""
    assert (folder / "artifacts" / "demo" / "detections_val2017.json").exists()
    run_all(page, server, "05_error_analysis")
    shown = page.locator(".widget-dropdown").filter(has=page.get_by_text("show", exact=True)).locator("select")
    kinds = [
        text
        for text in shown.locator("option").all_inner_texts()
        if text not in ("all predictions", "all errors", "missed")
    ]
    before = picture(page)
    shown.select_option(label="missed")
    expect(caption(page)).to_contain_text(NOTHING)  # what was missed is drawn thick; nothing false is
    missed = another_picture(page, before)
    shown.select_option(label=kinds[0])
    expect(caption(page)).not_to_contain_text(NOTHING)
    another_picture(page, missed)
