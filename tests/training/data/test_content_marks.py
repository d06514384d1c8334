from __future__ import annotations

import gzip

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.training.data.content_marks import content_mark, gzip_end


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_a_copy_has_the_same_mark_compressed_or_not(tmp_path, content):
    plain, small = tmp_path / "a.nii", tmp_path / "b.nii.gz"
    plain.write_bytes(content)
    small.write_bytes(gzip.compress(content))
    assert content_mark(plain) == content_mark(small) == gzip_end(small)


def test_another_content_has_another(tmp_path):
    one, other = tmp_path / "a.nii", tmp_path / "b.nii"
    one.write_bytes(b"one")
    other.write_bytes(b"two")
    assert content_mark(one) != content_mark(other)


def test_only_compressed_files_have_an_end(tmp_path):
    short, plain = tmp_path / "a.nii.gz", tmp_path / "b.nii"
    short.write_bytes(b"1234567")
    plain.write_bytes(b"12345678")
    assert gzip_end(short) is None
    assert gzip_end(plain) is None
