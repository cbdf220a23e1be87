"""Find a Chromium for the browser tests; as a program, try to install one.

    python tools/browser.py     exit code 0 if there is one, or if none is demanded

Looked for, in this order: $CHROMIUM, the system's browsers, Playwright's own. If none
is found, the program tries `playwright install chromium`, then apt. With CI=true it is
an error to end without a browser.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = [
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
    "chrome",
    "microsoft-edge",
]
PLACES = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
]
# Needed as root and without a network; harmless elsewhere.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def works(path: str | Path) -> bool:
    """Tell whether the program starts: a snap's stub, say, may only pretend to."""
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def playwrights_own() -> Path | None:
    """Return the browser that `playwright install` puts in its own folder."""
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            return Path(playwright.chromium.executable_path)
    except Exception:  # not installed, or no browser for this system
        return None


def find() -> Path | None:
    """Return a Chromium that starts, or None."""
    if asked := os.environ.get("CHROMIUM"):
        return Path(asked) if works(asked) else None
    for candidate in [shutil.which(name) for name in NAMES] + PLACES:
        if candidate and Path(candidate).exists() and works(candidate):
            return Path(candidate)
    own = playwrights_own()
    return own if own and own.exists() and works(own) else None


def attempt(*command: str) -> None:
    """Run a command that may fail; show what it said when it does."""
    print("$", *command, flush=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"  {error}")
        return
    if done.returncode:
        print("  " + "\n  ".join((done.stderr or done.stdout).splitlines()[-3:]))


def install() -> Path | None:
    """Try to install a Chromium; return it, or None."""
    attempt(sys.executable, "-m", "playwright", "install", "chromium")
    if found := find():
        return found
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root and shutil.which("apt-get"):
        if own_missing_libraries():
            attempt(sys.executable, "-m", "playwright", "install-deps", "chromium")
        if not (found := find()):
            attempt("apt-get", "update", "-qq")
            attempt("apt-get", "install", "-y", "-qq", "chromium")
            found = find()
    return found


def own_missing_libraries() -> bool:
    """Tell whether Playwright's own browser is there but does not start."""
    own = playwrights_own()
    return bool(own and own.exists() and not works(own))


def main() -> int:
    """Find or install a browser and say what came of it."""
    if os.environ.get("CHROMIUM") and not find():
        print(f"CHROMIUM={os.environ['CHROMIUM']} does not start")
        return 1
    if found := find() or install():
        print(f"browser tests use {found}")
        return 0
    print("NO BROWSER: no Chromium was found or could be installed.")
    print("The browser tests will not run. Install Chromium or set CHROMIUM=/path.")
    return int(os.environ.get("CI") == "true")


if __name__ == "__main__":
    sys.exit(main())
