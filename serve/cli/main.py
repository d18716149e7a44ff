"""The command `farm`: runs what was asked, and turns every end into one line and an exit code.

0 done, 1 our failure, 2 the user's mistake, 130 Ctrl-C (129 SIGHUP, 143 SIGTERM), 141 the reader of our output is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from serve.cli.ending import READER_GONE, Ending, exit_code_of


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process."""
    code = run(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """One command. Returns its exit code; whatever goes wrong is one line on standard error."""
    ending = Ending()
    ending.watch()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    session = None
    try:
        import typer

        from serve.cli.commands import app
        from serve.cli.session import Session, Work

        try:
            asked = app(args=list(argv), prog_name="farm", standalone_mode=False)
        except typer.TyperException as error:
            return _say(_usage(error), None, 2)
        if not isinstance(asked, Work):
            return int(asked or 0)
        session = Session(asked, ending)
        return session.perform()
    except KeyboardInterrupt:
        kept = session.kept if session else "stopped"
        return _say(kept, session, ending.exit_code)
    except BrokenPipeError:
        _drop_stdout()
        return READER_GONE
    except Exception as error:  # the last stop: one line for the person, the traceback for a log file
        return _say(*_line_of(error, session), ending.exit_code if ending.signum else exit_code_of(error))
    finally:
        if session is not None and session.terminal is not None:
            ending.sweep()
        ending.rest()


def _line_of(error: Exception, session: object) -> tuple[str, object]:
    from cluster.errors import FarmError
    from serve.cli.wording import clean

    if isinstance(error, FarmError):
        return error.line(), session
    what = f"{type(error).__name__}: {clean(str(error), 200)}".rstrip(": ")
    return f"something unforeseen happened ({what}); {_logged(error, session)}", session


def _logged(error: Exception, session: object) -> str:
    """Writes the traceback where a person finds it; says where."""
    import traceback
    from pathlib import Path

    from serve.cli.session import Session
    from serve.cli.terminal import new_log, spare_log

    log: Path | None = session.terminal.log if isinstance(session, Session) and session.terminal else None
    try:
        if log is None:
            from cluster import settings

            try:
                log = new_log(settings.load().home / "logs")
            except Exception:  # the settings may be what is wrong
                log = spare_log()
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError as failure:
        return f"its traceback could not be written ({failure.strerror})"
    return f"its traceback is in {log}"


def _usage(error: Exception) -> str:
    """Typer's own complaint, and where to read how it is meant."""
    from serve.cli.wording import clean

    said = clean(getattr(error, "format_message", error.__str__)(), 400).rstrip(".")
    said = re.sub(r"^Invalid value for '(\S+)': (?:Value error, )?", r"\1: ", said)
    said = re.sub(r"^(\S+): Input should be ([^,]+).*", r"\1 must be \2", said)
    path = getattr(getattr(error, "ctx", None), "command_path", "farm")
    return f"{said}; see {path} --help"


def _say(text: str, session: object, code: int) -> int:
    """The one line, on the terminal that the command had."""
    from serve.cli.session import Session
    from serve.cli.wording import clean

    terminal = session.terminal if isinstance(session, Session) else None
    err = terminal.err if terminal else sys.stderr
    with contextlib.suppress(OSError, AttributeError):
        print(f"farm: {clean(text, 1500)}", file=err, flush=True)
    return code


def _drop_stdout() -> None:
    """So that the interpreter's own flush at the end does not fail again."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
