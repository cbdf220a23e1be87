"""What the Sphinx extension decides without a build."""

import sys
from types import SimpleNamespace

import bookfiles as book
import pytest
import yaml

sys.path.insert(0, str(book.ROOT / "book/_ext"))
import literate


def options(**given):
    """The theme's options after the extension has seen them."""
    config = SimpleNamespace(html_theme_options=dict(given))
    literate.on_config(None, config)
    return config.html_theme_options


@pytest.mark.parametrize("given", [{}, {"repository_url": ""}])
def test_no_address_no_buttons(given):
    launch = {"notebook_interface": "classic", "binderhub_url": "https://example.org"}
    found = options(use_repository_button=True, launch_buttons=launch, **given)
    assert found["use_repository_button"] is False
    assert "launch_buttons" not in found


def test_an_address_brings_the_buttons():
    found = options(
        repository_url="https://example.org/book",
        use_repository_button=False,
        launch_buttons={"thebe": False},
    )
    assert found["use_repository_button"] is True
    launch = found["launch_buttons"]
    assert launch["colab_url"] and launch["binderhub_url"]
    assert launch["thebe"] is False


def test_on_config_is_called():
    heard = {}
    app = SimpleNamespace(
        config=SimpleNamespace(mathjax_path=""),
        add_directive=lambda *_: None,
        connect=lambda event, call, priority=500: heard.setdefault(event, call),
    )
    literate.setup(app)
    assert heard["config-inited"] is literate.on_config
    settings = yaml.safe_load((book.ROOT / "_config.yml").read_text())
    assert settings["sphinx"]["local_extensions"]["literate"] == "book/_ext"
    assert not settings["html"]["use_repository_button"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (59.6, "60 s"), (89, "89 s"), (95, "1 min 35 s")],
)
def test_in_words(seconds, said):
    assert literate.in_words(seconds) == said


def test_every_module_of_a_notebook_is_a_section():
    """The API page lists a chapter's modules in their order, constants apart."""
    found = literate.chapters()
    of_program = [m for m, c in found.items() if c.notebook == "24_program"]
    assert of_program == ["corpus", "checkpoint", "settings", "program"]
    assert "PRESETS" in found["settings"].constants
    assert "PRESETS" not in found["program"].constants
    assert found["attention"].notebook == "04_attention"
