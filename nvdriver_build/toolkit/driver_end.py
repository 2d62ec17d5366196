"""The driver's end: asks for a description of the kernel and for sets, and follows what is done about it."""

from __future__ import annotations

import contextlib
import errno
import secrets
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional

import structlog
from attrs import define, field

from nvdriver_build.errors import HeadersError, ToolkitError
from nvdriver_build.files import (
    private_folder,
    publish,
    publish_folder,
    put_plain,
    read_plain,
    remove,
    same_plain,
)
from nvdriver_build.kernel import Headers
from nvdriver_build.kernel.toolkit import ToolkitRelease
from nvdriver_build.source import Source
from nvdriver_build.toolkit.documents import (
    BUILD,
    HEADERS,
    NOTHING,
    SAME_VERSION,
    Order,
    Request,
    Result,
    error_of,
    read,
    write,
)
from nvdriver_build.toolkit.shared import DESCRIPTION, POLL, SILENT, VERMAGIC, Listener, Pulse, Shared

ENTRYPOINT, BUNDLE = "ocp_dtk_entrypoint", "nvdriver-build.pyz"
"""What the DTK container executes, and what that starts."""
ARRIVAL = 1800.0
"""Seconds for a first sign of life: the image of the toolkit may have to be pulled."""
RETURN = 330.0
"""Seconds for the return of one that went silent: a kubelet waits at most 300 s before it starts it again."""
_REMIND = 30.0
_MODEST = 16 * 1024 * 1024
"""Bytes that a file may have that describes a kernel; Module.symvers, the largest, has some 2 MB."""
Progress = Callable[[int, int, float], None]
_log = structlog.get_logger()


@define
class Sidecar:
    """The toolkit's end as the driver sees it. `check` is called many times a second in every wait.

    Everything raises ToolkitError where the other end is silent for too long, or the folder cannot be used.
    """

    shared: Shared
    bundle: Path
    check: Callable[[], None]
    arrival: float = ARRIVAL
    patience: float = RETURN
    instance: str = field(factory=lambda: secrets.token_hex(8))

    def prepare(self) -> None:
        """Put into the shared folder what the DTK container starts; the flag that it waits for comes last."""
        with self._usable():
            for name in (BUNDLE, ENTRYPOINT):
                publish(self.shared.root / name, (self.bundle / name).read_bytes(), 0o755, durable=False)
            publish(self.shared.prepared, "", durable=False)

    def dismiss(self) -> None:
        """Tell the other end that nothing is wanted of it, so that it stands by instead of waiting."""
        with self._usable():
            write(self.shared.request, self._request(NOTHING, ""))

    @contextlib.contextmanager
    def headers(self, release: str) -> Iterator[Headers]:
        """What the toolkit's headers say of kernel `release`: enough for a target and a proof, not to build.

        A copy that nobody else can change, gone afterwards. Raises HeadersError as the toolkit's end does
        where it has none.
        """
        if not self.shared.prepared.exists():
            self.prepare()
        result = self._ask(self._request(HEADERS, release))
        place = self.shared.headers / result.attempt
        with self._usable():
            description = dict(_read_description(place))
        introduction = self.shared.introduced()
        toolkit = None
        if introduction is not None and introduction.kernel is not None:
            toolkit = ToolkitRelease(introduction.kernel, introduction.rt_kernel, introduction.rhel)
        with _written(description) as copy:
            try:
                yield Headers(copy, copy, release, toolkit)
            except HeadersError as error:  # people look for what they name
                message = error.message.replace(str(copy), str(place))
                raise type(error)(message, hint=error.hint) from error

    def build(self, order: Order, source: Source, progress: Optional[Progress] = None) -> Path:
        """Have a set built; its folder, in the shared one. Raises what the build raised there."""
        self._offer(source, order.recipe.source_digest)
        request = self._request(BUILD, order.recipe.kernel_release, order)
        result = self._ask(request, progress)
        if result.key != order.recipe.key:
            raise ToolkitError(
                f"the toolkit's end built {result.key}, asked for was {order.recipe.key}",
                hint=SAME_VERSION,
            )
        return self.shared.store / "sets" / result.key

    def log(self, key: str) -> Path:
        """Where the toolkit's end writes the log of a build."""
        return self.shared.store / "logs" / f"{key}.log"

    def _request(self, what: str, release: str, order: Optional[Order] = None) -> Request:
        return Request(secrets.token_hex(8), self.instance, what, release, order)

    def _offer(self, source: Source, digest: str) -> None:
        """Put the kernel tree into the shared folder, whole, unless it is there."""
        place = self.shared.source(digest)
        with self._usable():
            if _is_whole(place, source):
                return
            remove(place)
            with private_folder(place.parent) as private:
                for name in source.names:
                    self.check()
                    put_plain(source.root / name, self.shared.root, private / "tree" / name)
                publish_folder(private / "tree", place, durable=False)

    def _ask(self, request: Request, progress: Optional[Progress] = None) -> Result:
        """Publish a request and wait for its own result; whatever is there before belongs to nobody."""
        with self._usable():
            self.shared.result.unlink(missing_ok=True)
            write(self.shared.request, request)
        watch = _Watch(self, Listener(self.shared.toolkit_beat))
        with Pulse(self.shared.driver_beat, self.instance):
            while True:
                self.check()
                result = read(self.shared.result, Result)
                if result is not None and result.attempt == request.attempt:
                    break
                watch.look(progress)
                time.sleep(POLL)
        if result.error is not None:
            if result.log_tail:
                _log.error("the end of the build's log", attempt=request.attempt, log=result.log_tail)
            raise error_of(result.error)
        return result

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ToolkitError(
                f"the folder shared with the Driver Toolkit, {self.shared.root}, cannot be used: {error}",
                hint="both containers mount one emptyDir there, with about 1 GiB of space",
            ) from error


def _is_whole(place: Path, source: Source) -> bool:
    """Whether the tree is there already. Bytes count: a node that lost its power may have kept a part."""
    try:
        return all(same_plain(place / name, source.root / name) for name in source.names)
    except OSError:
        return False


def _read_description(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files that describe a kernel, by name; OSError for one that is no plain file of modest size."""
    for name in (*DESCRIPTION, VERMAGIC):
        with contextlib.suppress(FileNotFoundError):
            content = read_plain(folder / name, _MODEST + 1)
            if len(content) > _MODEST:
                raise OSError(errno.EFBIG, f"more than {_MODEST} bytes", str(folder / name))
            yield name, content


@contextlib.contextmanager
def _written(description: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder of ours with these files, gone afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(Path(tempfile.gettempdir())))
            for name, content in description.items():
                publish(folder / name, content, durable=False)
        except OSError as error:
            raise ToolkitError(
                f"there is no folder for what the Driver Toolkit says of the kernel: {error}",
                hint="mount a volume at /tmp, with space left",
            ) from error
        yield folder


@define
class _Watch:
    """Says what becomes of the toolkit's end while an answer is awaited, and gives up in the end."""

    sidecar: Sidecar
    listener: Listener
    silent: bool = False
    _reminded: float = field(factory=time.monotonic)

    def look(self, progress: Optional[Progress]) -> None:
        introduction = self.sidecar.shared.introduced()
        if self.listener.listen():
            _log.warning("the toolkit's end was restarted: it begins anew")
        if self.listener.silence > SILENT:
            self._missed(introduction is not None or self.listener.heard)
        elif self.silent:
            self.silent = False
            _log.info("the toolkit's end is there again")
        beat = self.listener.beat
        if progress is not None and self.listener.heard and beat is not None and beat.total:
            progress(beat.done, beat.total, beat.elapsed)

    def _missed(self, known: bool) -> None:
        """Silence: told at once, and after that now and then."""
        bound = self.sidecar.patience if known else self.sidecar.arrival
        if self.listener.silence > bound:
            raise ToolkitError(
                f"the Driver Toolkit container {'went silent' if known else 'gave no sign of life'}: "
                f"nothing heard for {self.listener.silence:.0f} s in {self.sidecar.shared.root}",
                hint="look at that container of the pod: has it an image, was it killed (out of memory)?",
            )
        now = time.monotonic()
        if not self.silent or now - self._reminded > _REMIND:
            self._reminded = now
            event = (
                "the toolkit's end is silent: killed, or it hangs"
                if known
                else "waiting for the toolkit's end"
            )
            _log.warning(event, seconds=round(self.listener.silence, 1), patience=bound)
        self.silent = True
