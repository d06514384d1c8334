from __future__ import annotations

import pytest

from app.core.errors import UsageError
from app.dicom.site_names import SiteNames, read_site_names


class TestNames:
    names = SiteNames({"AX T1*": "t1n", "ax t1 post": "t1c", "Survey": None})

    @pytest.mark.parametrize("text,sequence", [("AX T1 SE", "t1n"), ("ax  t1", "t1n"), (" SURVEY ", None)])
    def test_a_name_is_a_pattern_whatever_its_case(self, text, sequence):
        name = self.names.name(text)
        assert (name.sequence, name.by_site, name.ask) == (sequence, True, False)

    def test_brackets_are_letters(self):
        names = SiteNames({"T1 [ce]": "t1c"})
        assert names.name("T1 [CE]").sequence == "t1c"
        assert names.name("T1 c") is None

    @pytest.mark.parametrize("text", ["SAG T1 SE", "Survey 2", ""])
    def test_of_others_the_site_says_nothing(self, text):
        assert self.names.name(text) is None

    def test_two_that_disagree_are_asked_about(self):
        name = self.names.name("AX T1 POST")
        assert name.ask
        assert "'AX T1*' as t1n and 'ax t1 post' as t1c" in name.why


class TestFile:
    @pytest.fixture
    def write(self, tmp_path):
        def fill(text):
            (tmp_path / "names.toml").write_text(text)
            return tmp_path / "names.toml"

        return fill

    def test_it_is_read(self, write):
        names = read_site_names(write('t1n = ["AX T1"]\nnone = ["SURVEY", "SCOUT*"]\n'))
        assert names.patterns == {"AX T1": "t1n", "SURVEY": None, "SCOUT*": None}

    def test_a_site_may_have_none(self):
        assert read_site_names(None) is None

    @pytest.mark.parametrize(
        "text,message",
        [
            ("t1n = [", "is no TOML"),
            ('t1 = ["AX T1"]', "'t1' is no sequence; use t1c, t1n, t2f, t2w, none"),
            ('t1n = "AX T1"', "t1n must be a list of names"),
            ('t1n = [" "]', "t1n must be a list of names"),
            ('t1n = ["AX"]\nt1c = ["AX"]', "'AX' stands under t1n and under t1c"),
        ],
    )
    def test_what_it_cannot_be(self, write, text, message):
        with pytest.raises(UsageError, match=r"names\.toml") as caught:
            read_site_names(write(text))
        assert message in str(caught.value)
