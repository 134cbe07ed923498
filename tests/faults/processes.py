"""The command line in processes of its own that can be killed, without importing torch each time.

A server imports everything and forks for each command; the child is an ordinary process with its
own memory, so a SIGKILL ends it as it would end any other.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Exit code, or the negative number of the signal that killed it."""
    output: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed before it was done."""
        return self.code == -signal.SIGKILL


class Commands:
    """A server that runs commands; see `commands`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def __call__(
        self,
        *arguments: object,
        cwd: Path,
        kill_after: float | None = None,
        file_bytes: int | None = None,
    ) -> Ended:
        """Run ``upfeat arguments``.

        Args:
            *arguments: of the command line.
            cwd: folder in which it runs.
            kill_after: seconds until SIGKILL.
            file_bytes: largest file that it may write.
        """
        request = {
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "kill_after": kill_after,
            "file_bytes": file_bytes,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    """Yield a server of commands that ends with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "UPFEAT_OFFLINE": "1", "COLUMNS": "300"}
    repository = Path(__file__).resolve().parents[2]
    paths = [repository / "src", repository, os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.processes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield Commands(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _serve() -> None:
    import upfeat.evaluation
    import upfeat.extraction
    import upfeat.training
    import upfeat.viz
    from upfeat.cli.app import app

    # What a command loads at its first use is loaded here.
    for name in ("upsampler", "backbone"):
        with contextlib.suppress(Exception):
            getattr(upfeat, f"create_{name}")(
                {"upsampler": "kin.upfeat", "backbone": "upfeat/vit_compact_patch16"}[name]
            )
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(app, request, writing)
        os.close(writing)
        code, output = _wait(child, reading, request["kill_after"], start)
        answer = {"code": code, "output": output, "seconds": time.monotonic() - start}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _child(app: Any, request: dict[str, Any], writing: int) -> None:
    """Run the command and end the process."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.chdir(request["cwd"])
        if request["file_bytes"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
        sys.argv = ["upfeat", *request["arguments"]]
        app()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, reading: int, kill_after: float | None, start: float) -> tuple[int, str]:
    """Collect the output until the child ends; kill it in time."""
    pieces = []
    killed = kill_after is None
    while True:
        left = None if killed else max(0.0, start + (kill_after or 0.0) - time.monotonic())
        ready, _, _ = select.select([reading], [], [], left)
        if ready:
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            pieces.append(piece)
        elif not killed:
            os.kill(child, signal.SIGKILL)
            killed = True
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), b"".join(pieces).decode(errors="replace")


if __name__ == "__main__":
    _serve()
