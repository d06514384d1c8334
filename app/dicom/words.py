"""What the name of a series says: its weighting, contrast, or that it is no plain sequence.

Names are free text in several languages. A word counts where no letter is beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

Weighting = Literal["t1", "t2f", "t2w"]


#: Taken out before anything is looked for: they hold words that mean something else alone.
_HARMLESS: Final = re.compile(
    r"flow[ _-]*comp\w*|sub[ _-]?(mm|millimet\w*)|(post|pre)[ _-]*(op|surg|rt|radi|treat|ther)\w*|post[ _.-]*fossa"
    r"|posterior|in[ _-]?phase|(nach|post|after|vor|pre|before)[ _-]*perf\w*"
    r"|w/?wo|(with|w)[ _]*(/|and|&|\+)[ _]*(without|w/?o)|(without|w/?o)[ _]*(and|&|\+)[ _]*(with|w)(?![a-z])"
    r"|(non?|ohne|w/?o|without|sans|sin)[ _-]*(fs|fat[ _-]?sat\w*|mt|mtc|sat)(?![a-z])"
)
#: Names of what is none of the four sequences.
_NO_SEQUENCE: Final = re.compile(
    r"""(?<![a-z])(
    # diffusion, perfusion, function, spectra
    e?adc | dwi\w* | dw_\w* | dti\w* | dki | trace\w* | diff\w* | difu\w* | tensor\w* | resolve | ivim | fraction\w*
    | isotropic[\s_-]*im\w* | average[\s_-]dc | colou?r | exponential\w* | b0 | b[\s_-]?\d{3,4} | perf\w* | pwi | dsc
    | dce | r?cb[vf] | mtt | ttp | tmax | transit\w* | p?c?asl\w* | fmri | bold | motor | tapping
    | rest\w*[\s_-]*(state|fmri) | mrs\w* | svs | csi | press | spectro\w* | apt\w?
    # susceptibility, vessels, flow
    | swi\w* | swan\w* | venbold | fsbb | qsm | hemo\w* | mra | mrv | tof\w* | s?3di\w* | mc_hr | pca | \w*_pca
    | venc\w* | ven | flow | cine | phase | mi?n?ip | t2\s?\*\w* | t2[\s_]?star\w* | mpgr | medic | merge | me_?gre
    # balanced, maps, parts of a sequence
    | b-?tfe | b-?ffe | fiesta\w* | ciss | trufi\w* | truefisp | maps? | mapping | inv-?[12] | out-?phase | opp\w*
    | fat(?![\s_-]*s) | dixon_f | dixon_opp | sub | subtr\w* | dir | double[\s_-]inv\w* | stir | magic | symri
    | synthetic | mpr | reformat\w*
    # not a scan of the head
    | loc | locali\w* | locator | rep[eé]rage | [uü]bersicht | scano\w* | scout\w* | survey\w* | 3-?pl\w* | rois?
    | mrac\w* | cal | calib\w* | asset | field.?map\w* | fa\s?\d+ | hws | bws | lws | [ctl]-?spine | spine | cervical
    | lumbar | thoracic | myelo\w* | neck | hals | orbit\w* | iac | sella\w* | pituit\w* | hypophy\w*
    )(?![a-z])""",
    re.VERBOSE,
)
_T1: Final = re.compile(r"(?<![a-rt-z0-9])t1|mprage|mp2rage|(?<![a-z])spgr|fspgr|bravo|tfl3d|tfl_3d|vibe|(?<![a-z])tfe")
_T2: Final = re.compile(r"(?<![a-rt-z0-9*])t2(?!\s*_?(\*|star))")
_FLAIR: Final = re.compile(r"flair|dark.?fl|da-?fl(?![a-z])")
_CONTRAST: Final = re.compile(
    r"\+ ?c(?![a-z])|(?<![a-z])c ?\+|\+ ?g[ad]|(?<![a-z])iv ?\+|t1c(?![a-z])|t1 ?_?(gd|ce|km)(?![a-z])|_c$"
    r"|(?<![a-z])(gad\w*|gd\w?|dotarem|magnevist|prohance|multihance|clariscan|omniscan|vueway|elucirem|km|kontrast\w*"
    r"|contrast\w*|contraste?|ce|enh(anced)?|post\w*|pos|mdc|mdco|inj\w*|ct1)(?![a-z])"
)
_NOUN: Final = r"(contrast\w*|gad\w*|gd|ce|km|kontrast\w*|inj\w*|iv|c|mdc)(?![a-z])"
_NATIVE: Final = re.compile(
    rf"(?<![a-z])(pre|without|w/?o|wo|non?|ohne|o\.|vor|sans|sin|senza|before|avant)[ _.-]*{_NOUN}"
    r"|(?<![a-z])(nativ\w*|unenhanced|non-?enhanced|precontrast|pregad\w*|pre|plain)(?![a-z])"
)
#: Protocols of navigation: most are with contrast, and not all.
_UNSURE: Final = re.compile(r"(?<![a-z])(stealth|navi\w*|neuronav\w*|brainlab)(?![a-z])")
_AGENT: Final = re.compile(r"gado\w+|gadavist|dotarem|magnevist|prohance|multihance|clariscan|omniscan|vueway|elucirem")
_NO_AGENT: Final = re.compile(
    r"^\W*$|(?<![a-z])(no|non|none|nil|not|without|w/?o|sin|sans|senza|ohne|kein\w*|unknown|n/?a|n|nein|pre|nativ\w*)"
    r"(?![a-z])|^\W*0(?![.\d]*[1-9])"
)


def no_sequence(text: str) -> str | None:
    """Find the word by which a series is none of the four; None where none is there."""
    match = _NO_SEQUENCE.search(_plain(text))
    return match[0] if match else None


def weighting_by_words(texts: Sequence[str]) -> Weighting | None:
    """Tell the weighting by the names of a series; None where they do not say, or contradict."""
    found = {weighting for text in texts if (weighting := _weighting_of(_plain(text)))}
    return found.pop() if len(found) == 1 else None


def _weighting_of(text: str) -> Weighting | None:
    t1, t2 = bool(_T1.search(text)), bool(_T2.search(text))
    if _FLAIR.search(text):
        # A T1 FLAIR is a T1.
        return "t1" if t1 and not t2 else "t2f"
    # A name with both, such as `t1_t2`, says nothing.
    return None if t1 == t2 else "t1" if t1 else "t2w"


def says_contrast(text: str) -> bool:
    """Tell whether a name says that contrast was given."""
    return bool(_CONTRAST.search(_NATIVE.sub(" ", _plain(text))))


def says_native(text: str) -> bool:
    """Tell whether a name says that none was given."""
    return bool(_NATIVE.search(_plain(text)))


def is_unsure(text: str) -> bool:
    """Tell whether a name is that of a protocol which is done with contrast or without."""
    return bool(_UNSURE.search(_plain(text)))


def is_agent(text: str) -> bool:
    """Tell whether what stands for the contrast agent is one; many sites write that there was none."""
    plain = text.lower()
    if named := _AGENT.search(plain):
        return not _NATIVE.search(plain[: named.end()])
    return not _NO_AGENT.search(plain)


def _plain(text: str) -> str:
    return _HARMLESS.sub(" ", text.lower())
