"""The page for people, in headless Chromium: an image dropped shows its class, a text file an error, a key is asked for
where one is needed.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from serving import Served

import pyvimtrt
from pyvimtrt.zoo import DEMO_SAMPLES

pytestmark = [pytest.mark.needs_chromium, pytest.mark.alone]  # a browser waits five seconds for what it shows
SAMPLE = DEMO_SAMPLES / "1000_t-shirt-top.png"
DROP = """([target, name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  for (const kind of ["dragover", "drop"])
    document.querySelector(target).dispatchEvent(
      new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyvimtrt.build(output=tmp_path_factory.mktemp("demo") / "demo.onnx", backend="cpu")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    """A page whose every mishap in the console fails the test."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type == "error" and "status of" not in message.text else None
        ),
    )
    yield page
    page.close()
    assert not problems


def drop(page: Page, name: str, kind: str, content: bytes) -> None:
    page.evaluate(DROP, ["#drop", name, kind, base64.b64encode(content).decode()])


def test_an_image_dropped_shows_its_class(tmp_path: Path, demo_engine: Path, page: Page) -> None:
    with Served(tmp_path, f"clothes={demo_engine}") as served:
        page.goto(served.url)
        expect(page.locator("#model")).to_have_value("clothes")
        drop(page, "shirt.png", "image/png", SAMPLE.read_bytes())
        rows = page.locator("#classes tr")
        expect(rows).to_have_count(5)
        best = pyvimtrt.load_engine(demo_engine).classify([SAMPLE])[0]
        expect(rows.nth(0)).to_contain_text(best[0].label)
        expect(rows.nth(0)).to_contain_text(f"{100 * best[0].probability:.2f}%")
        assert [row.split("\t")[0] for row in rows.all_inner_texts()] == [p.label for p in best]
        expect(page.locator("#seen")).to_be_visible()
        expect(page.locator("#error")).to_be_empty()
        drop(page, "notes.txt", "text/plain", b"hello")
        expect(page.locator("#error")).to_contain_text("not an image")
        expect(rows).to_have_count(0)
        page.set_input_files("#file", SAMPLE)
        expect(rows).to_have_count(5)
        expect(page.locator("#error")).to_be_empty()


def test_a_key_is_asked_for(tmp_path: Path, demo_engine: Path, page: Page) -> None:
    with Served(tmp_path, f"a={demo_engine}", f"b={demo_engine}", "--api-key", "open-sesame") as served:
        page.goto(served.url)
        expect(page.locator("#keyed")).to_be_visible()
        expect(page.locator("#error")).to_contain_text("API key")
        page.fill("#key", "open-sesame")
        page.press("#key", "Tab")
        expect(page.locator("#model option")).to_have_count(2)
        page.select_option("#model", "b")
        expect(page.locator("#name")).to_have_text("b")
        drop(page, "shirt.png", "image/png", SAMPLE.read_bytes())
        expect(page.locator("#classes tr")).to_have_count(5)


def test_another_model_clears_the_answer_and_small_images_are_shown_larger(
    tmp_path: Path, demo_engine: Path, page: Page
) -> None:
    with Served(tmp_path, f"a={demo_engine}", f"b={demo_engine}") as served:
        page.goto(served.url)
        expect(page.locator("#model option")).to_have_count(2)
        drop(page, "shirt.png", "image/png", SAMPLE.read_bytes())
        expect(page.locator("#classes tr")).to_have_count(5)
        seen = page.locator("#seen").bounding_box()
        assert seen is not None and seen["height"] == 160 and seen["width"] == 160  # of 28 x 28 pixels
        expect(page.locator("#seen")).to_have_class("small")
        page.select_option("#model", "b")
        expect(page.locator("#classes tr")).to_have_count(0)
        expect(page.locator("#time")).to_be_empty()
        expect(page.locator("#seen")).to_be_hidden()
        drop(page, "notes.txt", "text/plain", b"hello")
        expect(page.locator("#error")).to_contain_text("not an image")
        page.select_option("#model", "a")
        expect(page.locator("#error")).to_be_empty()
        buffer = io.BytesIO()
        Image.new("RGB", (900, 600), (200, 30, 40)).save(buffer, "PNG")
        drop(page, "large.png", "image/png", buffer.getvalue())
        expect(page.locator("#classes tr")).to_have_count(5)
        seen = page.locator("#seen").bounding_box()
        assert seen is not None and (seen["width"], seen["height"]) == (240, 160)
        expect(page.locator("#seen")).not_to_have_class("small")


def test_hostile_labels_are_text(tmp_path: Path, demo_engine: Path, page: Page) -> None:
    """A label is never markup."""
    labels = [f"<img src=x onerror=alert({i})>" for i in range(10)]
    engine = pyvimtrt.build(output=tmp_path / "labels.onnx", backend="cpu", labels=labels)
    with Served(tmp_path, engine) as served:
        page.goto(served.url)
        expect(page.locator("#model")).to_have_value("labels")
        drop(page, "shirt.png", "image/png", SAMPLE.read_bytes())
        expect(page.locator("#classes tr").nth(0)).to_contain_text("<img src=x onerror=alert(6)>")
        assert page.locator("#classes img").count() == 0
