"""A page, and a real browser that has it open."""

import os
import shutil
from pathlib import Path

import pytest

from tests.report.browser import open_browser
from tests.report.cases import CASE, write_page


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """A headless Chromium of its own. Absent: skip, or fail where AUMN_REQUIRE_BROWSER is set."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("AUMN_REQUIRE_BROWSER"):
            pytest.fail("AUMN_REQUIRE_BROWSER is set, but there is no chromium and chromedriver")
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("case"), **CASE)[0]


@pytest.fixture
def page(browser, case: Path):
    """The page, freshly opened; afterwards the console must be clean and nothing fetched."""
    browser.open(case)
    yield browser
    assert browser.complaints() == []
    assert browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert browser.run("return window.hacked") is None
