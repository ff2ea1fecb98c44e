"""The documentation pages: everything they need is ours, and they render with no network."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

PAGES = ["/docs", "/redoc"]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            names = {"src", "href", "spec-url", "srcset", "data"}
            self.found += [value or "" for name, value in attrs if name in names]


def loaded(page: str) -> list[str]:
    """Return every address that a page loads."""
    links = _Links()
    links.feed(page)
    return links.found


@pytest.mark.requirement("003.docs")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_elsewhere(client: httpx.Client, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "//" not in answer.text
    assets = loaded(answer.text)
    assert len(assets) >= 3
    for asset in assets:
        assert asset.startswith("/")
        found = client.get(asset)
        assert found.status_code == 200, asset
        assert found.content
        tag = found.headers.get("etag")
        if tag is not None:
            again = client.get(asset, headers={"If-None-Match": tag})
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.requirement("003.docs")
def test_the_scripts_fetch_no_picture_from_their_makers(client: httpx.Client) -> None:
    redoc = client.get("/docs/assets/redoc.standalone.js").text
    assert "cdn.redoc.ly" not in redoc
    assert "/docs/assets/favicon.png" in redoc
    init = client.get("/docs/assets/init.js").text
    assert "validatorUrl: null" in init
    styles = client.get("/docs/assets/swagger-ui.css").text
    assert not re.search(r"@import|url\(['\"]?(?!['\"]?data:)", styles)


@pytest.mark.requirement("003.docs")
@pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_renders_in_a_browser_without_network(
    server: Served, tmp_path: Path, page: str
) -> None:
    assert BROWSER is not None
    ended = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--virtual-time-budget=8000",
            f"--user-data-dir={tmp_path}",
            "--enable-logging=stderr",
            "--dump-dom",
            server.url + page,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "/v1/orchestrate" in ended.stdout
    assert "Have a task done and wait for its reply" in ended.stdout
    outside = [link for link in loaded(ended.stdout) if re.match(r"(https?:)?//", link)]
    assert [link for link in outside if not link.startswith(server.url)] == []
    complaints = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in complaints if "Content Security Policy" in line], complaints
