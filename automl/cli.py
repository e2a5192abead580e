"""The ``prunepilot`` command: thin verbs over the library.

Exit codes: 0 done, 1 ran and failed, 2 bad input (one line on stderr), 130 interrupted (Ctrl-C),
143 terminated (SIGTERM).

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once: a module of
``automl.commands`` imports torch, Hydra and friends inside ``run`` only.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from automl.hints import did_you_mean
from automl.signals import as_exceptions, exit_code, unmasked, word

#: The verbs, in the order of ``prunepilot --help``; each is a module of ``automl.commands``
#: with SUMMARY, EXAMPLE, ``add_arguments(parser)`` and ``run(args) -> exit code``.
VERBS = (
    "search", "resume", "sensitivity", "compare", "report", "policy", "apply", "export", "prune",
    "trace", "lut", "storage", "bench", "bench-search", "doctor",
)  # fmt: skip

OK, FAILED, BAD_INPUT = 0, 1, 2

#: What a disk can have against a write; no fault of this program's.
_DISK = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO,
})  # fmt: skip
#: What is wrong with a file or folder that somebody named.
_NAMED = frozenset({
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR,
    errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EBUSY,
})  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all bad input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def entry_point() -> NoReturn:
    """What the installed ``prunepilot`` script calls."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not all terminals can show all signs
    warnings.formatwarning = _warning
    sys.exit(main(sys.argv[1:]))


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """One line for people, without the place in the code."""
    return f"prunepilot: warning: {' '.join(str(message).split())}\n"


def main(argv: Sequence[str]) -> int:
    """Runs one verb.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit code.
    """
    try:
        with as_exceptions(), unmasked():
            try:
                args = _parse(_parser(argv), argv)
            except SystemExit as stop:  # argparse has printed the help or the error
                return int(stop.code or OK)
            return _run(args)
    except KeyboardInterrupt as stop:
        return _stopped(stop)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        return FAILED
    except Exception as error:
        return _known_or_raise(error)


def _stopped(stop: KeyboardInterrupt) -> int:
    print(f"prunepilot: {word(stop)}", file=sys.stderr)
    return exit_code(stop)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the arguments; settings may stand before and after options, which argparse refuses."""
    args, rest = parser.parse_known_args(argv)
    settings = [text for text in rest if "=" in text and not text.startswith("-")]
    if len(settings) < len(rest) or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if settings:
        args.overrides = [*args.overrides, *settings]
    return args


def _run(args: argparse.Namespace) -> int:
    if getattr(args, "cfg", None):
        from automl.commands.compose import compose
        from automl.runs import to_yaml

        print(to_yaml(compose(args.overrides)), end="")
        return OK
    return int(args.run(args))


def _known_or_raise(error: Exception) -> int:
    from automl.types import FailedError, InputError  # here, because it imports numpy

    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror}; what is finished is kept: mend that, then go on"
        print(f"prunepilot: failed: {text}", file=sys.stderr)
        return FAILED
    if isinstance(error, OSError) and error.errno in _NAMED and error.filename:
        name = error.filename2 or error.filename  # of a file that is moved: where to
        text = f"{name}: {error.strerror}; mend that or name another"
        print(f"prunepilot: error: {text}; what is finished is kept", file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, MemoryError):
        print("prunepilot: failed: out of memory; what is finished is kept", file=sys.stderr)
        return FAILED
    if isinstance(error, FailedError):
        print(f"prunepilot: failed: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    if not isinstance(error, InputError):
        raise error
    print(f"prunepilot: error: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="prunepilot",
        description="Finds how much to prune from every layer of a PyTorch network.",
        epilog="Example: prunepilot search model=digits data=digits budget.macs=0.5 run_dir=runs/a",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=lambda args: _no_verb(parser, args))
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        parser.error(f"no verb named {argv[0]!r}; {did_you_mean(argv[0], VERBS)}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=_Parser)
    for name in VERBS:
        _add_verb(verbs, name)
    return parser


def _add_verb(verbs: argparse._SubParsersAction[_Parser], name: str) -> None:
    command = importlib.import_module(f"automl.commands.{name.replace('-', '_')}")
    parser = verbs.add_parser(
        name,
        help=command.SUMMARY,
        description=command.SUMMARY[0].upper() + command.SUMMARY[1:] + ".",
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _no_verb(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.version:
        from automl._version import __version__

        print(f"prunepilot {__version__}")
        return OK
    parser.print_help()
    return OK


if __name__ == "__main__":
    entry_point()
