import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest

import automl
from automl.cli import VERBS, _parser
from automl.commands.compose import compose, expand
from automl.models import load_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "lut" / "README.md"])
#: Made when the site is built.
GENERATED = {"verbs.md"}


def slug(heading):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[^\w\s-]", "", text.lower()).strip()
    return re.sub(r"[\s]", "-", text)


def prose(page):
    """Without code, in which brackets are no links."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(?: {4,}).*$", "", text, flags=re.MULTILINE))


def broken_links(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        docs = ROOT / "docs"
        if not file.exists() or (docs in page.parents and docs not in file.parents):
            broken.append(target)  # what is outside of docs/ is not part of the site
        elif anchor and anchor not in {
            slug(h) for h in re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
        }:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_and_a_missing_anchor_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](gone.md) [b](#one-two) [c](#three) `[d](e.md)`\n")
    assert broken_links(page) == ["gone.md", "#three"]


def test_a_page_that_leads_out_of_the_site_is_found(monkeypatch, tmp_path):
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    (tmp_path / "README.md").touch()
    page.write_text("[a](../README.md) [b](page.md)")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert broken_links(page) == ["../README.md"]


def test_every_page_is_in_the_navigation_once():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    on_disk = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(on_disk | GENERATED)


def test_the_page_of_verbs_is_their_own_help(capsys):
    import sys

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from docs_pages import verbs_markdown
    finally:
        sys.path.pop(0)
    page = verbs_markdown()
    assert re.findall(r"^## ([\w-]+)$", page, flags=re.MULTILINE) == list(VERBS)
    assert page.count("usage: prunepilot ") == len(VERBS)
    assert page.count("\nexample:\n") == len(VERBS)
    assert "\x1b" not in page and str(Path.home()) not in page


def test_the_walk_through_runs(capsys):
    text = (ROOT / "docs" / "walkthrough.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert "uniform" in capsys.readouterr().out


@pytest.mark.parametrize(
    "public", ["Policy", "Searcher", "load_runs", "prune", "trace"], ids=lambda name: name
)
def test_examples_in_docstrings_run(public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dense = load_model("automl.models.digits.digits_cnn", input_shape=(1, 8, 8))
    names = {
        "automl": automl,
        "model": dense.model,
        "example_inputs": dense.example_inputs,
        "evaluate": lambda network: network(*dense.example_inputs).mean().item(),
        "Searcher": automl.Searcher,
    }
    if public == "load_runs":
        make_run(tmp_path / "runs" / "a")
    # NORMALIZE_WHITESPACE and ELLIPSIS: tables may be cut.
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    examples = doctest.DocTestParser().get_doctest(
        getattr(automl, public).__doc__, names, public, None, None
    )
    assert examples.examples
    runner = doctest.DocTestRunner(optionflags=options)
    runner.run(examples)
    assert runner.failures == 0


def make_run(folder):
    from automl.cli import main

    settings = ["model=digits", "data=digits", "strategy=uniform", "budget.macs=0.5", "trials=1"]
    fast = ["repair=none", "scoring.images=50", f"run_dir={folder}"]
    assert main(["search", *settings, *fast]) == 0


def commands(page):
    text = page.read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    prunepilot ")]


HOW_TO = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.name)
def test_commands_of_the_first_pages_are_understood(page):
    assert commands(page)
    for command in commands(page):
        arguments = shlex.split(command)[1:]
        parsed, rest = _parser(arguments).parse_known_args(arguments)
        for overrides in expand([*getattr(parsed, "overrides", []), *rest]):
            compose(overrides)
