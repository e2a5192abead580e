"""MkDocs hook: the page of verbs, made from the verbs' own help, so that it cannot drift."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Any

VERBS_PAGE = "verbs.md"


def verbs_markdown() -> str:
    """The help of every verb, as ``prunepilot VERB --help`` prints it."""
    from automl.cli import VERBS

    parts = [
        "# Verbs",
        "What `prunepilot VERB --help` prints. Exit codes: 0 done, 1 ran and failed, 2 bad input "
        "(one line says what is wrong), 130 interrupted.",
    ]
    for name in VERBS:
        parts += [f"## {name}", f"```text\n{help_of(name).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def help_of(verb: str) -> str:
    """What ``prunepilot VERB --help`` prints, 90 columns wide and without colour."""
    from automl.cli import main

    wanted = {"COLUMNS": "90", "NO_COLOR": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            main([verb, "--help"])
    except SystemExit:  # argparse's way to end a help
        pass
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return printed.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """Adds the page of verbs to the site; called by MkDocs."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, VERBS_PAGE, content=verbs_markdown()))
    return files
