"""The toolkit's end: serves one request at a time, and stands by when there is none."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

import structlog
from attrs import define, evolve, field

from nvdriver_build import __version__
from nvdriver_build.build.log import tail
from nvdriver_build.commands import Commands, SystemCommands
from nvdriver_build.errors import BuildError, NvdriverError, ToolkitError
from nvdriver_build.files import private_folder, publish_folder, remove
from nvdriver_build.kernel import Headers, KernelTarget, find_headers, target_from_headers
from nvdriver_build.kernel.compiler import compiler_text
from nvdriver_build.kernel.config import parse_config
from nvdriver_build.kernel.headers import installed_kernels
from nvdriver_build.kernel.target import flavour
from nvdriver_build.kernel.toolkit import ToolkitRelease, read_toolkit_release
from nvdriver_build.toolkit.documents import (
    EXCERPT,
    HEADERS,
    NOTHING,
    SAME_VERSION,
    Introduction,
    Order,
    Request,
    Result,
    read,
    read_raw,
    write,
)
from nvdriver_build.toolkit.shared import DESCRIPTION, SILENT, VERMAGIC, Listener, Pulse, Shared

IDLE = 0.2
"""Seconds between two looks for a request: one stat(2)."""
TAIL = 40
"""Lines of a build's log that go with a failure."""

Progress = Callable[[int, int, float], None]
Builder = Callable[[Order, Headers, KernelTarget, Commands, Progress], str]
"""Builds what is ordered; the key of the set, which is in the shared store then."""
_log = structlog.get_logger()


class _Superseded(BaseException):
    """Another request came. Like Stopped: no handler of errors may swallow it."""


@define
class Server:
    """The toolkit's end. `root` is that of the toolkit's image; `commands.check` ends it by Stopped."""

    shared: Shared
    root: Path
    commands: SystemCommands
    build: Builder
    instance: str = field(factory=lambda: secrets.token_hex(8))
    _seen: Optional[tuple[int, int]] = None
    _current: Optional[Request] = None
    _pulse: Optional[Pulse] = None
    _listener: Optional[Listener] = None
    _silent: bool = False
    _stuck: bool = False

    def serve(self) -> None:
        """Serve requests until `commands.check` raises."""
        introduction = self._introduction()
        self._persist(lambda: write(self.shared.introduction, introduction))
        while True:
            request = self._next()
            if request is None:
                self.commands.check()
                time.sleep(IDLE)
            elif request.what == NOTHING:
                _log.info("nothing is wanted: standing by")
            elif not self._is_answered(request):
                self._serve(request)

    def _introduction(self) -> Introduction:
        """Who this is: what the image says of itself, and what is really there."""
        release: Optional[ToolkitRelease] = None
        try:
            release = read_toolkit_release(self.root)
        except NvdriverError as error:  # every request is refused with this later on, by its own name
            _log.warning(error.message)
        installed = dict(_flavours(self.root))
        compiler = compiler_text("gcc", self.commands)
        _log.info("this toolkit", kernels=installed, release_file=release, compiler=compiler)
        return Introduction(
            self.instance,
            __version__,
            kernel=release.kernel if release else None,
            rt_kernel=release.rt_kernel if release else None,
            rhel=release.rhel if release else None,
            compiler=compiler,
            installed=installed,
        )

    def _next(self) -> Optional[Request]:
        """The request, if it is another one than at the last look; what is none of ours is answered here."""
        try:
            stat = self.shared.request.stat()
        except OSError:
            return None
        if (stat.st_ino, stat.st_mtime_ns) == self._seen:
            return None
        self._seen = (stat.st_ino, stat.st_mtime_ns)
        try:
            request = read(self.shared.request, Request)
            if request is not None and request.tool != __version__:
                raise ToolkitError(
                    f"the driver's end is nvdriver-build {request.tool}, the toolkit's end {__version__}",
                    hint=SAME_VERSION,
                )
        except ToolkitError as error:
            self._refuse(error)
            return None
        return request

    def _refuse(self, error: ToolkitError) -> None:
        """Answer a request of another version of this program by its id, which every version has."""
        attempt = None
        with contextlib.suppress(ToolkitError):
            attempt = (read_raw(self.shared.request) or {}).get("attempt")
        if isinstance(attempt, str):
            self._answer_soon(Result(attempt, self.instance, error=error.document()))
        if not self._stuck:
            _log.error(error.message, hint=error.hint)

    def _is_answered(self, request: Request) -> bool:
        try:
            result = read(self.shared.result, Result)
        except ToolkitError:
            return False
        return result is not None and result.attempt == request.attempt

    def _serve(self, request: Request) -> None:
        _log.info("asked for", what=request.what, kernel=request.kernel_release, attempt=request.attempt)
        self._current, self._silent = request, False
        self._listener = Listener(self.shared.driver_beat)
        try:
            with Pulse(self.shared.toolkit_beat, self.instance) as self._pulse:
                result = self._result(request)
                self._persist(lambda: self._answer(evolve(result, attempt=self._attempt)))
        except _Superseded:
            _log.info("superseded by another request")
        finally:
            self._current = self._pulse = None
            self._seen = None  # our answer may have hidden that of a request which came meanwhile

    @property
    def _attempt(self) -> str:
        """The attempt that is served now: a driver that came back asks for the same by another id."""
        assert self._current is not None
        return self._current.attempt

    def _result(self, request: Request) -> Result:
        try:
            if request.what == HEADERS:
                self._describe(request)
                return Result(request.attempt, self.instance)
            return Result(request.attempt, self.instance, self._build(request))
        except NvdriverError as error:
            return self._failed(request, error)
        except Exception as error:  # whoever asked must not wait for an answer that never comes
            told = ToolkitError(f"{type(error).__name__}: {error}", hint=_hint(error, self.shared.root))
            return self._failed(request, told)

    def _failed(self, request: Request, error: NvdriverError) -> Result:
        if not self._stuck:  # else it is told again and again, until the volume takes the answer
            _log.error(error.message, hint=error.hint)
        document = {**error.document(), "message": error.message[:EXCERPT]}
        log = self._tail(request) if isinstance(error, BuildError) else ""
        return Result(request.attempt, self.instance, None, document, log)

    def _build(self, request: Request) -> str:
        order = request.order
        if order is None:
            raise ToolkitError("the request is to build, but has no order", hint=SAME_VERSION)
        commands = evolve(self.commands, check=self._check)
        headers = find_headers(self.root, order.recipe.kernel_release)
        return self.build(order, headers, target_from_headers(headers), commands, self._show)

    def _describe(self, request: Request) -> None:
        """Put what describes the kernel into the shared folder; HeadersError where it is not here."""
        headers = find_headers(self.root, request.kernel_release)
        place = self.shared.headers / request.attempt
        with private_folder(place.parent) as private:
            for source, names in ((headers.output, DESCRIPTION), (headers.sources, (VERMAGIC,))):
                for name in names:
                    if (source / name).is_file():
                        copy = private / "excerpt" / name
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(source / name, copy)
            publish_folder(private / "excerpt", place, durable=False)
        for old in self.shared.headers.glob("[0-9a-f]*"):
            if old != place:
                remove(old)

    def _show(self, done: int, total: int, elapsed: float) -> None:
        if self._pulse is not None:
            self._pulse.show(done, total, elapsed)

    def _check(self) -> None:
        """Look for signals, for another request, and after the driver, in the midst of a build."""
        self.commands.check()
        request = self._next()
        if request is not None and self._current is not None:
            self._meanwhile(request, self._current)
        if self._listener is not None:
            self._listen(self._listener)

    def _listen(self, listener: Listener) -> None:
        if listener.listen():
            _log.warning("the driver's end was restarted")
        silent = listener.silence > SILENT
        if silent and not self._silent:
            _log.warning("the driver's end is silent: the work goes on, it may come back for it")
        elif self._silent and not silent:
            _log.info("the driver's end is there again")
        self._silent = silent

    def _meanwhile(self, request: Request, current: Request) -> None:
        """A driver that came back asks for headers first, then for what is being built: both are served."""
        building, wanted = current.order, request.order
        if request.attempt == current.attempt:  # touched, no more
            return
        if building is not None and request.what == HEADERS:
            self._answer_soon(self._result(request))
        elif building is not None and wanted is not None and wanted.recipe == building.recipe:
            _log.info("asked for the same again: going on", attempt=request.attempt)
            self._current = request
        else:
            raise _Superseded

    def _tail(self, request: Request) -> str:
        log = self.shared.store / "logs" / f"{request.order.recipe.key}.log" if request.order else None
        try:
            return tail(log, TAIL) if log else ""
        except OSError:
            return ""

    def _answer(self, result: Result) -> None:
        write(self.shared.result, result)
        _log.info("answered", attempt=result.attempt, key=result.key, failed=result.error is not None)

    def _answer_soon(self, result: Result) -> None:
        """Answer, or have the request looked at again: the work that goes on may be what fills the volume."""
        if not self._write(lambda: self._answer(result)):
            self._seen = None

    def _persist(self, act: Callable[[], None]) -> None:
        """Do it once the volume takes it: a full one is freed at times, and giving up would not free it."""
        while not self._write(act):
            self.commands.check()
            time.sleep(IDLE)

    def _write(self, act: Callable[[], None]) -> bool:
        """Whether the volume takes it; said once where it does not."""
        try:
            act()
        except OSError as error:
            if not self._stuck:
                _log.error("the shared folder takes nothing", reason=str(error))
            self._stuck = True
            return False
        self._stuck = False
        return True


def _hint(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError):
        return f"is there space left in {folder}?"
    return "this is a bug of nvdriver-build: please report it"


def _flavours(root: Path) -> Iterator[tuple[str, str]]:
    for release, tree in sorted(installed_kernels(root).items()):
        try:
            config = parse_config((tree / ".config").read_text(errors="replace"))
        except OSError:
            config = {}
        yield release, flavour(release, config)
