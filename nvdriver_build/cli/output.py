"""The folder that `build` and `sign` write a set to: replaced as a whole, and nothing else is ever lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nvdriver_build.errors import StoreError, UsageError
from nvdriver_build.files import exchange, private_folder, publish_folder, sync
from nvdriver_build.sets import SIGNATURE, ModuleSet, open_set


def check_output(output: Path) -> Path:
    """Where the set will be, links followed. Told before anything is built: what stands in the way."""
    place = Path(os.path.realpath(output))
    if place == Path.cwd():
        raise UsageError(
            f"{output} is the current folder, and the output is put in place as a whole",
            hint="name a folder in it",
        )
    _require_replaceable(place)
    parent = next(path for path in place.parents if path.exists())
    if place.is_mount() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise _not_written(output, f"{parent} takes no new folder of this name")
    return place


def _require_replaceable(place: Path) -> None:
    """What is replaced is gone: so only a set and nothing else, or nothing at all, may be there."""
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        return
    hint = "give a new folder, or an empty one"
    try:
        files = {SIGNATURE, *(path.name for path in open_set(place, check=False).files)}
    except StoreError as error:
        raise UsageError(f"{place} exists and is no module set", hint=hint) from error
    foreign = sorted({path.name for path in place.iterdir()} - files)
    if foreign:
        raise UsageError(f"{place} is a module set and holds {foreign[0]}, too", hint=hint)


def write_set(built: ModuleSet, place: Path) -> None:
    """Put a copy of the set in place of what was there, which stays whole until the copy is."""
    try:
        with private_folder(place.parent) as private:
            (private / "set").mkdir()
            for path in built.files:
                shutil.copyfile(path, private / "set" / path.name)
            sync(private)
            _require_replaceable(place)  # a build takes minutes
            if not publish_folder(private / "set", place):
                exchange(private / "set", place)
                _require_ours(private / "set", place)
    except OSError as error:
        raise _not_written(place, error.strerror or str(error)) from error


def _require_ours(taken: Path, place: Path) -> None:
    """What was taken from `place` goes in a moment: where it is no set, it goes back, and that is told."""
    try:
        _require_replaceable(taken)
    except UsageError as error:
        exchange(taken, place)
        raise _not_written(place, "another process has written there meanwhile") from error


def _not_written(output: Path, why: str) -> StoreError:
    return StoreError(
        f"cannot write {output}: {why}",
        hint="give a name in a writable folder with space left; a mount point cannot be replaced",
    )
