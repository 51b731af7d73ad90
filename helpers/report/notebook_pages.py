"""An executed notebook as one HTML page that asks the network for nothing."""

import base64
import copy
import functools
import re
from pathlib import Path

import bleach
import jinja2
import markupsafe
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from helpers.files import without_folders
from helpers.pictures.embed import picture

LIMIT = 14_000_000  # bytes of a page; the promise is 15 MB
LONG_TEXT = 200_000  # characters of one output
LONG_TABLE = 30  # rows
WIDGET = "application/vnd.jupyter.widget-view+json"
CONTROL = "(a live control: it needs a running kernel; the report's index.html can be browsed without one)"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
TEXTS = ("HTMLModel", "LabelModel", "HTMLMathModel")  # widgets
TAGS = (
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li "
    "ol p pre progress q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var"
)
ATTRIBUTES = "class id title alt style colspan rowspan scope value max width height open"
STYLES = ["color", "background-color", "font-weight", "text-align", "width", "max-width"]


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of ``helpers/report/templates``; everything that is put into them is escaped."""
    how = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=jinja2.PackageLoader("helpers.report"), **how)


def notebook_page(notebook_file: Path) -> tuple[str, str]:
    """The page of an executed notebook, and its title. Raises ValueError when the file is no notebook."""
    notebook = nbformat.read(notebook_file, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#\s+(.+)$", prose, re.MULTILINE)
    title = heading[1].strip() if heading else notebook_file.stem
    for side in (1400, 900, 500):  # smaller pictures only where the page would be too large
        page = _render(notebook_file.stem, title, _still(notebook, side))
        if len(page.encode()) < LIMIT:
            break
    return page, title


def _render(name: str, title: str, notebook: nbformat.NotebookNode) -> str:
    body, _ = HTMLExporter(template_name="basic", exclude_anchor_links=True).from_notebook_node(notebook)
    safe = markupsafe.Markup(without_folders(clean(body)))
    colours = markupsafe.Markup(HtmlFormatter(style="default").get_style_defs(".highlight"))
    return templates().get_template("notebook.html").render(name=name, title=title, body=safe, highlighting=colours)


def clean(html: str) -> str:
    """Notebook HTML with known-harmless tags and attributes alone: no script, no frame, nothing fetched.

    nbconvert's own (``sanitize_html``) takes no options: it escapes paragraphs, table heads and embedded pictures. Its
    preprocessor does, but drops every data URI, leaves the text of scripts, and does not see what Markdown becomes.
    """
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "style", "iframe", "object", "embed", "link", "meta", "base", "form"]):
        element.decompose()
    _fold(soup)
    # The sanitiser reads letter by letter: pictures wait outside, and come back by number.
    sources = []
    for element in soup("img"):
        source = element.get("src", "")
        if re.fullmatch(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/=\s]+", source):
            element["src"] = f"#picture-{len(sources)}"
            sources.append(source)
        else:
            element.replace_with(f"[picture: {element.get('alt') or 'without a description'}]")
    css = CSSSanitizer(allowed_css_properties=STYLES)
    options = {"tags": TAGS.split(), "attributes": _harmless, "protocols": {"http", "https"}}
    safe = bleach.clean(str(soup), css_sanitizer=css, strip=True, **options)
    return re.sub(r'src="#picture-(\d+)"', lambda match: f'src="{sources[int(match.group(1))]}"', safe)


def _fold(soup: BeautifulSoup) -> None:
    """Put the parameters, and tables that are longer than a screen, behind a line that opens them."""
    folded = [(cell, "Parameters") for cell in soup.select(".celltag_parameters .input_area")]
    tables = [(table, len(table("tr"))) for table in soup.select(".output_html table")]
    folded += [(table, f"Table with {rows} rows") for table, rows in tables if rows > LONG_TABLE]
    for element, words in folded:
        element.wrap(soup.new_tag("details")).insert(0, soup.new_tag("summary", string=words))


def _harmless(tag: str, name: str, value: str) -> bool:
    if tag == "img" and name == "src":
        return re.fullmatch(r"#picture-\d+", value) is not None
    return name in ATTRIBUTES.split() or (tag == "a" and name == "href")


def _still(notebook: nbformat.NotebookNode, side: int) -> nbformat.NotebookNode:
    """A copy without what needs a kernel or the network; pictures at most ``side`` pixels large."""
    still = copy.deepcopy(notebook)
    widgets = still.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    still.metadata.pop("widgets", None)
    for cell in still.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET in data:
                text = _widget_text(widgets, data[WIDGET].get("model_id", ""))
                output["data"] = data = {"text/plain": text or CONTROL}
            data.pop("application/javascript", None)
            for holder, key in [(output, "text"), *((data, kind) for kind in list(data) if kind.startswith("text/"))]:
                text = holder.get(key, "")
                if len(text) > LONG_TEXT:
                    cut = f"{text[:LONG_TEXT]}\n(cut here: {len(text)} characters)"
                    holder[key] = cut if key != "text/html" else "(a table too long for this page)"
            for kind in ("image/png", "image/jpeg"):
                if kind in data:
                    _shrink(output, kind, side)
    return still


def _shrink(output, kind: str, side: int) -> None:
    try:
        uri = picture(base64.b64decode(output["data"].pop(kind)), side)
    except ValueError:
        output["data"] = {"text/plain": "(a picture that does not decode)"}
        return
    new_kind, content = uri.removeprefix("data:").split(";base64,")
    output["data"][new_kind] = content


def _widget_text(state: dict, model_id: str) -> str:
    """What a progress bar or a label last showed; empty for a control."""
    children = state.get(model_id, {}).get("state", {}).get("children", [])
    models = [state.get(child.removeprefix("IPY_MODEL_"), {}) for child in children or [model_id]]
    if not {model.get("model_name") for model in models} <= {*TEXTS, "FloatProgressModel", "IntProgressModel"}:
        return ""
    values = [model["state"].get("value", "") for model in models if model["model_name"] in TEXTS]
    return " ".join(BeautifulSoup(" ".join(values), "html.parser").get_text().split())
