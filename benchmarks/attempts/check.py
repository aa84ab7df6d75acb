"""An attempt is looked at before the race: whether it can be made, and answers as it should."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from crowdrt.benchmarks.attempts.agreement import Agreement, agreement, objection
from crowdrt.benchmarks.attempts.attempt import Attempt, Opener, Setting
from crowdrt.benchmarks.attempts.openers import as_written, prepared
from crowdrt.benchmarks.feeds import feeds_for
from crowdrt.benchmarks.timing.children import end_all, how_it_ended, inherited_by_child
from crowdrt.console import say
from crowdrt.contracts import Feeds, UInt8Image
from crowdrt.engines.base import Engine
from crowdrt.errors import CrowdRTError, EngineError

LEAVE_OUT = "leave the attempt out: --only NAME"
TIMEOUT_S = 300.0

Options = Mapping[str, Any] | None
Compare = Callable[[Setting, Attempt, Options, Feeds], "Compared"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far an attempt's answer is from its baseline's."""

    agreement: Agreement  # in the runtime
    written: Agreement | None  # of both graphs as they are written, where that is the proof


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An attempt that was looked at: what opens it, or why it is not raced."""

    attempt: Attempt
    opener: Opener | None
    result: str = ""
    agreement: Agreement | None = None
    written: Agreement | None = None
    found: Mapping[str, Any] | None = None


def answer_to(engine: Engine, image: UInt8Image) -> Feeds:
    """Return what an engine answers for a photograph, (3, H, W)."""
    return engine.run(feeds_for(engine, image))


def compared(setting: Setting, attempt: Attempt, options: Options, expected: Feeds) -> Compared:
    """Open an attempt and compare its answer with `expected`, the baseline's."""
    form = attempt.baseline.form
    engine = attempt.opener(setting, options)()
    in_runtime = agreement(expected, answer_to(engine, setting.image), form)
    if attempt.written is None:
        return Compared(agreement=in_runtime, written=None)
    path = setting.files[form]
    graphs = (prepared(path, attempt.baseline.runtime), attempt.written(path, **(options or {})))
    before, after = (
        answer_to(as_written(graph, setting.num_threads), setting.image) for graph in graphs
    )
    return Compared(agreement=in_runtime, written=agreement(before, after, form))


def compared_apart(
    setting: Setting, attempt: Attempt, options: Options, expected: Feeds
) -> Compared:
    """Return what `compared` does, from a process of its own: a runtime may crash on a graph.

    Raises:
        CrowdRTError: what `compared` raised, in words.
        EngineError: the process ended by itself, or never answered.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    order = (theirs, setting, replace(attempt, choose=None), options, expected)
    process = context.Process(target=send_compared, args=order, daemon=True)
    with inherited_by_child(setting.num_threads):
        process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            raise EngineError(f"no answer within {TIMEOUT_S:g} s", fix=LEAVE_OUT)
        answer: Compared | CrowdRTError = ours.recv()
    except EOFError:
        process.join()
        ended = f"its process {how_it_ended(process.exitcode)}"
        raise EngineError(ended, fix=LEAVE_OUT) from None
    finally:
        ours.close()
        end_all([process])
    if isinstance(answer, CrowdRTError):
        raise answer
    return answer


def send_compared(
    connection: Connection, setting: Setting, attempt: Attempt, options: Options, expected: Feeds
) -> None:
    """Send what `compared` returns, or the error that says why it does not."""
    os.dup2(sys.stderr.fileno(), 1)  # stdout belongs to the parent's result
    answer: Compared | CrowdRTError
    try:
        answer = compared(setting, attempt, options, expected)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises becomes the reason
        answer = EngineError(reason_of(error), fix=LEAVE_OUT)
    connection.send(answer)


def entry_of(
    setting: Setting, attempt: Attempt, expected: Feeds, *, compare: Compare = compared
) -> Entry:
    """Look at one attempt: choose its form, open it, and compare its answer.

    What cannot be made, for whatever reason, is an entry that says so: the others are raced.
    """
    say(f"{attempt.name}: checked against {attempt.baseline.name}")
    entry = Entry(attempt=attempt, opener=None)
    try:
        options = None
        if attempt.choose is not None:
            choice = attempt.choose(setting, attempt.baseline)
            entry = replace(entry, found={**choice.found, "said": choice.said})
            options = choice.options
            if options is None:
                return replace(entry, result=f"not raced: {choice.said}")
        found = compare(setting, attempt, options, expected)
        entry = replace(entry, agreement=found.agreement, written=found.written)
        reason = objection(found.written or found.agreement) if attempt.exact else ""
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises becomes the reason
        reason = reason_of(error)
    if reason:
        return replace(entry, result=f"refused: {reason}")
    return replace(entry, opener=attempt.opener(setting, options))


def reason_of(error: Exception) -> str:
    """Return what went wrong: our own words, or a runtime's with the kind of error."""
    if isinstance(error, CrowdRTError):
        return error.problem
    return f"{type(error).__name__}: {error}"
