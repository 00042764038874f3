"""Work beside the page, so that it goes on answering."""

import threading
import traceback
from pathlib import Path

from covidlib import readers


def sentence(error):
    """What a reader is told of an exception: never the folder that a file lies in."""
    if isinstance(error, readers.ReadError):
        name = Path(error.path).name
        return f"{name}: {error.reason}. {error.hint}.".replace(str(error.path), name)
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}."
    return str(error) or type(error).__name__


def _note(error):
    """A traceback for the log of what nobody foresaw; bad files are told on the page."""
    if not isinstance(error, (ValueError, OSError)):
        traceback.print_exception(error)


class Latest:
    """Calls `function` in a thread of its own, for the last request alone where several came meanwhile.

    on_error: called with an exception of the function.
    """

    def __init__(self, function, on_error):
        self._function, self._on_error = function, on_error
        self._changed, self._wanted, self._busy = threading.Condition(), False, False
        threading.Thread(target=self._run, daemon=True).start()

    def request(self):
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def wait(self, seconds=60):
        """Until nothing is asked for any more; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._wanted and not self._busy, seconds)

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted)
                self._wanted, self._busy = False, True
            try:
                self._function()
            except Exception as error:
                _note(error)
                self._on_error(error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()


class Job:
    """One piece of work in a thread, which looks at `cancelled` now and then.

    function: called with the Job; on_error as in Latest.
    """

    def __init__(self, function, on_error):
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(function, on_error), daemon=True)
        self._thread.start()

    @property
    def cancelled(self):
        return self._cancel.is_set()

    @property
    def running(self):
        return self._thread.is_alive()

    def cancel(self):
        self._cancel.set()

    def wait(self, seconds=None):
        self._thread.join(seconds)

    def _run(self, function, on_error):
        try:
            function(self)
        except Exception as error:
            _note(error)
            on_error(error)
