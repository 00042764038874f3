"""Work in threads, so that the page responds meanwhile."""

import threading
import traceback
from concurrent import futures
from pathlib import Path

from covidlib import readers


def sentence(error):
    """An exception for readers, without the folder of a file."""
    if isinstance(error, readers.ReadError):
        name = Path(error.path).name
        return f"{name}: {error.reason}. {error.hint}.".replace(str(error.path), name)
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}."
    return str(error) or type(error).__name__


def _report(function, on_error):
    """Call a function, and `on_error` with its exception; unforeseen ones are logged, too."""
    try:
        function()
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exception(error)
        on_error(error)


class Latest:
    """Calls `function` in a thread, once for all requests that come while it runs; on_error: called with exceptions."""

    def __init__(self, function, on_error):
        self._work = function, on_error
        self._pool, self._pending, self._lock = futures.ThreadPoolExecutor(1), None, threading.Lock()

    def request(self):
        with self._lock:
            if self._pending:
                self._pending.cancel()  # unless it runs
            self._pending = self._pool.submit(_report, *self._work)

    def wait(self, seconds=60):
        """Until all requests are done; False where that takes longer."""
        return self._pending is None or not futures.wait([self._pending], seconds).not_done


class Job(threading.Thread):
    """function(job) in a thread, which is to look at `cancelled`, an Event, now and then; on_error as in Latest."""

    def __init__(self, function, on_error):
        super().__init__(target=lambda: _report(lambda: function(self), on_error), daemon=True)
        self.cancelled = threading.Event()
        self.start()
