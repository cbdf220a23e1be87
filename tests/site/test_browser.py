"""Every page in a real browser: light, dark and as narrow as a phone.

Screenshots are left in ``_build/screens/``.
"""

import functools
import http.server
import os
import sys
import threading

import bookfiles as book
import pytest
from axe_playwright_python.sync_playwright import Axe

sys.path.insert(0, str(book.ROOT / "tools"))
import browser as chromium

HTML = book.ROOT / "_build" / "html"
SCREENS = book.ROOT / "_build" / "screens"
PAGES = book.contents()
IN_CI = os.environ.get("CI") == "true"

VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
    },
}
# Findings of axe-core about what is not ours: a part of the markup for each rule.
NOT_OURS = {
    "label-content-name-mismatch": "<button",  # the theme's search button
    "region": "",  # the theme's sidebar
    "aria-deprecated-role": 'class="citation',  # docutils' bibliography
    "aria-required-children": 'class="citation',
}
WCAG = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa"]}
CONTRAST = {"type": "rule", "values": ["color-contrast"]}
RULES = {"light": WCAG, "dark": CONTRAST}  # a phone has the light page's markup

pytestmark = pytest.mark.skipif(
    not HTML.exists() and not IN_CI, reason="no book in _build/html: run `make book`"
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """The built book, served to this machine alone."""
    handler = functools.partial(Quiet, directory=str(HTML))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    program = chromium.find()
    if program is None:
        told = "no Chromium here: the browser tests did NOT run (see tools/browser.py)"
        pytest.fail(told) if IN_CI else pytest.skip(told)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(program), args=chromium.FLAGS
        )
        yield started
        started.close()


@pytest.fixture(scope="module", params=VIEWS)
def view(request, browser):
    """One context a view, so that what the pages share is loaded once."""
    context = browser.new_context(**VIEWS[request.param])
    yield request.param, context
    context.close()


def watch(page, origin):
    """Return a list that fills with whatever goes wrong on the page."""
    faults = []

    def on_console(message):
        if message.type == "error":
            faults.append(f"console: {message.text}")

    def on_request(request):
        if not request.url.startswith((origin, "data:", "blob:")):
            faults.append(f"asks another host: {request.url}")

    def on_response(response):
        if response.status >= 400:
            faults.append(f"{response.status}: {response.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", on_request)
    page.on("response", on_response)
    page.on("requestfailed", lambda r: faults.append(f"failed: {r.url}"))
    return faults


def settle(page):
    """Wait for the mathematics and for every picture, those further down too."""
    page.evaluate(
        """async () => {
            if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
            for (const image of document.images) image.loading = "eager";
            await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
            await document.fonts.ready;
        }"""
    )


# What is wrong with a page as drawn.
DRAWN = """width => {
    const faults = [];
    const source = document.querySelectorAll("article .math").length;
    const drawn = document.querySelectorAll("article .math mjx-container").length;
    if (drawn < source) faults.push(`${drawn} of ${source} formulas are drawn`);
    for (const e of document.querySelectorAll("mjx-merror, .MathJax_Error"))
        faults.push("bad TeX: " + (e.dataset.mjxError || e.textContent));
    for (const i of document.images)
        if (i.naturalWidth === 0) faults.push("picture not drawn: " + i.src);
    const root = document.scrollingElement;
    if (root.scrollWidth > width + 1) {
        faults.push(`page is ${root.scrollWidth} wide, window ${width}`);
        const wide = [...document.querySelectorAll("article *")].find(
            e => e.getBoundingClientRect().right > width + 1);
        if (wide) faults.push("first too wide: " + wide.outerHTML.slice(0, 160));
    }
    return faults;
}"""


def axe_faults(page, rules):
    """Return what axe-core finds, but for what is not ours."""
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    return [
        f"{found['id']}: {found['help']}: {node['html'][:160]}"
        for found in Axe().run(page, options=options).response["violations"]
        for node in found["nodes"]
        if NOT_OURS.get(found["id"], "not allowed") not in node["html"]
    ]


@pytest.mark.parametrize("name", PAGES)
def test_page(view, site, name):
    kind, context = view
    page = context.new_page()
    faults = watch(page, site)
    try:
        page.goto(f"{site}/{name}.html", wait_until="load")
        settle(page)
        faults += page.evaluate(DRAWN, page.viewport_size["width"])
        theme = page.evaluate("document.documentElement.dataset.theme")
        if theme != ("dark" if kind == "dark" else "light"):
            faults.append(f"theme is {theme} in the {kind} view")
        SCREENS.mkdir(parents=True, exist_ok=True)
        file = SCREENS / f"{name.replace('/', '-')}-{kind}.png"
        page.screenshot(path=file, full_page=True)
        found = list(faults)  # axe loads files of its own: what it causes is no fault
        if kind in RULES:
            found += axe_faults(page, RULES[kind])
        assert not found, "\n".join(found)
    finally:
        page.close()


BROKEN = """<!doctype html><html data-theme="light"><title>x</title><article>
<p class="math">x</p><mjx-merror data-mjx-error="Undefined">x</mjx-merror>
<img src="gone.png"><div style="width: 3000px">wide</div>
<script>console.error("bad"); fetch("http://other.invalid/"); undefined.x</script>
</article></html>"""


def test_checks_find_faults(browser, site):
    """A page with every fault is told every fault."""
    context = browser.new_context(**VIEWS["phone"])
    page = context.new_page()
    faults = watch(page, site)
    page.route(
        "**/broken.html",
        lambda route: route.fulfill(body=BROKEN, content_type="text/html"),
    )
    page.goto(f"{site}/broken.html", wait_until="load")
    settle(page)
    page.wait_for_timeout(200)
    told = "\n".join(faults + page.evaluate(DRAWN, 390)) + "\n".join(
        axe_faults(page, WCAG)
    )
    context.close()
    for fault in (
        "console: bad",
        "script: ",
        "404: ",
        "asks another host: http://other.invalid/",
        "failed: http://other.invalid/",
        "0 of 1 formulas are drawn",
        "bad TeX: Undefined",
        "picture not drawn",
        "window 390",
        "image-alt",
    ):
        assert fault in told
