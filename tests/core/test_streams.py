from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.streams import LastingStream, lasting_streams

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("closed", [(2,), (1,), (0,), (0, 1, 2)])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path, closed):
    script = (
        "import sys; from app.core.streams import open_standard_streams; open_standard_streams();"
        "stream = open(sys.argv[1], 'w'); print(stream.fileno(), file=stream);"
        "print('out'); print('err', file=sys.stderr); assert sys.stdin.read() == ''"
    )
    shut = " ".join(f"{number}<&-" for number in closed)
    command = f'exec "$0" -c "$1" "$2" {"" if 0 in closed else "</dev/null"} {shut}'
    file = tmp_path / "file"
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, script, file], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert int(file.read_text()) > 2


@pytest.fixture
def pipe():
    """A stream into a pipe, and the end at which one reads."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield stream, reader


def test_a_reader_that_goes_is_no_error(pipe):
    stream, reader = pipe
    lasting = LastingStream(stream, BrokenPipeError)
    lasting.write("a" * 10)
    os.close(reader)
    lasting.flush()
    assert lasting.write("b" * 100_000) == 100_000
    lasting.flush()


def test_other_errors_are_raised():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        LastingStream(Full(), BrokenPipeError).write("a")


def test_it_is_the_stream_in_all_else(pipe):
    lasting = LastingStream(pipe[0], OSError)
    assert lasting.fileno() == pipe[0].fileno()
    assert not lasting.isatty()
    os.close(pipe[1])


def test_streams_come_back(capsys):
    before = sys.stdout, sys.stderr
    with lasting_streams():
        print("a")
        print("b", file=sys.stderr)
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a\n", "b\n")
