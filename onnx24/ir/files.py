"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar

from onnx24.errors import InputError
from onnx24.ir.inputs import refuse_input


class AtomicFiles:
    """A set of files that are renamed into place together, once all of them are complete.

    Use as a context manager: `f = files.create(path)` gives an open binary file; leaving the
    block without an exception renames all of them in the order of creation, an exception (a
    full disk and Ctrl-C included) removes them.
    Raises: InputError O24-040 for what the operating system refuses, O24-041 for a file that the
    command reads.
    """

    _live: ClassVar[weakref.WeakSet[AtomicFiles]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._live.add(self)
        self._open: list[tuple[IO[bytes], Path, Path]] = []
        self._folders: list[Path] = []

    def create(self, path: Path) -> IO[bytes]:
        refuse_special(path)
        refuse_input(path)
        temporary = _temporary(path)
        try:
            file = open(temporary, "xb")  # noqa: SIM115 - closed in __exit__
        except OSError as err:
            raise _cannot_write(path, err) from err
        self._open.append((file, temporary, path))
        return file

    def make_folder(self, path: Path) -> None:
        """With its parents; those that are new go again where the files do not appear."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            try:
                folder.mkdir()
            except OSError as err:
                raise _cannot_write(folder, err) from err
            self._folders.append(folder)

    def adopt(self, file: IO[bytes], path: Path) -> IO[bytes] | None:
        """As `create`, with a file that is written already and has no name yet; None where the
        system can't give it one there.

        Source: open(2), O_TMPFILE: linkat through /proc with AT_SYMLINK_FOLLOW, which Python
        passes on only where a folder's descriptor is given.
        """
        refuse_input(path)
        temporary = _temporary(path)
        duplicate = os.fdopen(os.dup(file.fileno()), "r+b")
        try:
            descriptor = f"/proc/self/fd/{file.fileno()}"
            os.link(descriptor, temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        except OSError:
            duplicate.close()
            return None
        self._open.append((duplicate, temporary, path))
        return duplicate

    @classmethod
    def discard_all(cls) -> None:
        """Remove what is half written, for a process that ends without its exceptions."""
        for files in list(cls._live):
            for _, temporary, _ in list(files._open):
                temporary.unlink(missing_ok=True)

    def __enter__(self) -> AtomicFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: object
    ) -> None:
        path = self._open[-1][2] if self._open else Path()
        try:
            if exc is None:
                for file, _temporary, path in self._open:  # noqa: B007 - named in the error below
                    file.close()
                for _file, temporary, path in self._open:
                    os.replace(temporary, path)
                return
        except OSError as err:
            raise _cannot_write(path, err) from err
        finally:
            self._discard()
        if isinstance(exc, OSError) and exc.errno in _WRITE_ERRORS:
            raise _cannot_write(path, exc) from exc

    def _discard(self) -> None:
        for file, temporary, _ in self._open:
            with contextlib.suppress(OSError):
                file.close()  # flushes; on a full disk that fails again, and the file goes anyway
            temporary.unlink(missing_ok=True)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):  # not empty: its files have appeared
                folder.rmdir()


def _temporary(path: Path) -> Path:
    """Beside it; its name may be as long as the system allows."""
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.part")


def refuse_special(path: Path) -> None:
    """A new file takes the place of what is there: of a device, a pipe or a link to one of the
    process's own streams, which superusers may replace, it must not.

    Raises: InputError O24-040.
    """
    is_stream = path.is_symlink() and os.readlink(path).startswith("/proc/")
    if path.is_dir() and not is_stream:
        raise InputError.of("O24-040", "the output is a folder", file=str(path))
    if is_stream or (path.exists() and not path.is_file()):
        message = "cannot write: it is no regular file; '-' is standard output"
        raise InputError.of("O24-040", message, file=str(path))


_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ESTALE)


def storage_error(err: BaseException, who: str = "") -> InputError | None:
    """What a disk or folder refuses while a command works, as its user reads it; None where `err`
    is something else. A temporary or working folder may fill up or vanish at any time."""
    if not isinstance(err, OSError):
        return None
    is_named = err.filename is not None or "temporary directory" in str(err)
    is_full = err.errno in _WRITE_ERRORS
    if not is_full and not (err.errno in _GONE and is_named):
        return None
    reason = os.strerror(err.errno) if err.errno else str(err)
    return InputError.of(
        "O24-040",
        f"{who}cannot {'write' if is_full else 'read or write'}: {reason}",
        file=str(err.filename or ""),
        hint="make room where the output, the work dir and temporary files (TMPDIR) go",
    )


def _cannot_write(path: Path, err: OSError) -> InputError:
    reason = os.strerror(err.errno) if err.errno else str(err)
    return InputError.of("O24-040", f"cannot write: {reason}", file=str(path))


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """One file that appears whole or not at all. Raises: InputError O24-040."""
    with AtomicFiles() as files:
        yield files.create(Path(path))


def copy_range(
    source: IO[bytes], target: IO[bytes], offset: int, length: int, at: int | None = None
) -> None:
    """Put `length` bytes at `offset` of `source` into `target`, without mapping them: at `at`, or
    at its position, which moves on.

    Raises: OSError, also when the source ends early.
    """
    if at is not None:
        target.seek(at)
    target.flush()
    done = 0
    use_kernel = hasattr(os, "copy_file_range")
    while done < length:
        want = min(length - done, 8 << 20)
        if use_kernel:
            try:
                copied = os.copy_file_range(source.fileno(), target.fileno(), want, offset + done)
            except OSError as err:
                if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                use_kernel = False  # another file system, or a kernel without it
                continue
            if copied:
                done += copied
                continue
            use_kernel = False
        chunk = os.pread(source.fileno(), want, offset + done)
        if not chunk:
            raise OSError(errno.EIO, "the source file became shorter")
        target.write(chunk)
        target.flush()
        done += len(chunk)
