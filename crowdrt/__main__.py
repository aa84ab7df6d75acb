"""Where the command starts: Ctrl-C ends it quietly even before the command line is loaded."""

import signal


def main() -> None:
    """Load the command line and run it.

    Until it is there nothing has begun that would have to be cleaned up, so Ctrl-C ends the
    process as the operating system does: no traceback, and 130 in a shell. Later it is the
    command line's own. Where the caller ignores Ctrl-C, it stays ignored.
    """
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from crowdrt.cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
