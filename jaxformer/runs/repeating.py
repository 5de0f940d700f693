"""What is done again and again beside a run, in a thread."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from jaxformer.errors import UserError
from jaxformer.storage import said

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def repeated(work: Callable[[], None], seconds: float, failing: str) -> Iterator[None]:
    """Do `work` every so many seconds while the block runs.

    That it does not work is said once (`failing`, and why) until it works again. A UserError ends it without a word:
    whoever does the same work next, in the run itself, raises it.
    """
    closed = threading.Event()

    def keep_up() -> None:
        works = True
        while not closed.wait(seconds):
            try:
                work()
                works = True
            except UserError:
                return
            except Exception as error:
                if works:
                    _log.warning("%s, tried again: %s", failing, said(error))
                works = False

    thread = threading.Thread(target=keep_up, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()
