"""Whether tests in a real browser can run: Debian's Chromium, driven by Playwright, which `make test-web` installs.

Where either is missing these tests are skipped, except under NEURONAUT_WEB_TESTS=required.
"""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def need_browser() -> None:
    """Skip the module that is being collected where a browser is missing and not required."""
    if os.environ.get("NEURONAUT_WEB_TESTS") == "required":
        return
    pytest.importorskip("playwright")
    pytest.importorskip("axe_playwright_python")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed", allow_module_level=True)
