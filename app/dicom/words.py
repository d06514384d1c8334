"""What the name of a series says: its weighting, contrast, or that it is no plain sequence.

Names are free text in several languages. A word counts where no letter is beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

Weighting = Literal["t1", "t2f", "t2w"]


#: Taken out before anything is looked for: they hold words that mean something else alone.
_HARMLESS: Final = re.compile(
    r"flow[ _-]*(comp|sat)\w*|sub[ _-]?(mm|millimet\w*)|sub-[a-z0-9]+_(ses-[a-z0-9]+_)?"
    r"|(post|pre)[ _-]*(op(?!t)|surg|rt(?![a-z])|radi|treat|ther|chemo|resect|bx|biops|pro(?![a-z]*h)|central|fill)\w*"
    r"|post[ _.-]*fossa|posterior|dr\.?[ _]*\w+|(prone|supine)[ _]*pos|in[ _-]?phase|head[ /_-]*neck|dl[ _-]?enhanced"
    r"|(gr[ae]y|white|high|low|soft|tissue)[ /a-z]*contrast"
    r"|(nach|post|after|vor|pre|before|dopo|apres|apos|tras|po|na)[ _-]*perf\w*"
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
    | swi\w* | swan\w* | venbold | fsbb | qsm | hemo\w* | mra | mrv | tof\w* | s?3di(_\w+)? | mc_hr | pca | \w*_pca
    | venc\w* | ven | flow | cine | mi?n?ip | t2\s?\*\w* | t2[\s_]?star\w* | mpgr | medic | merge | me_?gre
    # balanced, maps, parts of a sequence
    | b-?tfe | b-?ffe | fiesta\w* | ciss | trufi\w* | truefisp | maps? | mapping | inv-?[12] | out-?phase | opp\w*
    | fat(?![\s_./-]*s) | dixon_f | dixon_opp | sub | subtr\w* | (?<!\d)dir | double[\s_-]inv\w* | stir | magic | symri
    | synthetic | reformat\w*
    # not a scan of the head
    | loc | locali\w* | locator | reperage | ubersicht | scano\w* | scout\w* | survey\w* | 3-?pl\w* | rois?
    | mrac\w* | cal | calib\w* | field.?map\w* | vibe\w*[\s_]fa\s?\d+ | hws | bws | lws | [ctl]-?spine | spine
    | cervical | lumbar | thoracic | myelo\w* | neck | hals | orbits? | orbita | iac | sella\w* | pituit\w* | hypophy\w*
    )(?![a-z])""",
    re.VERBOSE,
)
_T1: Final = re.compile(
    r"(?<![a-z0-9])(3d|s|e|v|ce|c)*t1|mp-?rage|mp2rage|(?<![a-z])spgr|fspgr|bravo|tfl3d|tfl_3d|vibe|thrive|(?<![a-z])tfe"
)
_T2: Final = re.compile(r"(?<![a-z0-9*])(3d|s|e|v)*t2(?!\s*_?(\*|star))")
_FLAIR: Final = re.compile(r"flair|dark.?fl|da-?fl(?![a-z])")
_CONTRAST: Final = re.compile(
    r"\+ ?(c|k|g[ad]\w*)?(?![a-z0-9])|(?<![a-z])c ?\+|(?<![a-z])iv ?\+|t1c(?![a-z])|_c$|(?<![a-z])cet1"
    r"|(t1w?|mp-?rage|bravo|vibe|tfe|spgr|fs)_?(post|gd|gad\w*|ce|km|nachkm)(?![a-z])"
    r"|(?<![a-z])(gad\w*|gd\w?|dotarem|magnevist|prohance|multihance|clariscan|omniscan|optimark|vueway|elucirem|km"
    r"|kontra\w*|contrast\w*|contraste?|ce|enh(anced)?|post\w*|c?mdco?|m\.d\.c|inj\w*|ct1|ilacli)(?![a-z])|контраст"
)
_BEFORE: Final = (
    r"pre|without|w/?o|wo|non?|ohne|o\.|vor|sans|sin|senza|before|avant|prima d\w+|sem|antes d\w+|voor|przed|utan"
    r"|zonder|bez|s/|geen|kein\w*|uden"
)
_NOUN: Final = r"(contrast\w*|gad\w*|gd|ce|km|kontra\w*|inj\w*|iv|c|mdc)(?![a-z])"
_NATIVE: Final = re.compile(
    rf"(?<![a-z])({_BEFORE})[ _.-]*{_NOUN}|{_NOUN}[ _]*(\(-\)|oncesi)|(^|\s)-(gad\w*|gd)(?![a-z])|kontrastsiz"
    r"|(?<![a-z])(nativ\w*|unenhanced|non-?enhanced|precontrast|pregad\w*|pre|plain|basale)(?![a-z])"
    r"|(?<![a-z])(without|ohne|sans|w/o)$"
)
#: Names that may stand for an image with contrast or without, or that nobody may use.
_UNSURE: Final = re.compile(r"(?<![a-z])(stealth|navi\w*|neuronav\w*|brainlab|pos|w con)(?![a-z])")
_NOT_FIT: Final = re.compile(r"(?<![a-z])(not|non)[ _-]*diag\w*")
_HARMLESS_AGENT: Final = re.compile(r"no (reaction|adverse|complic|allerg)\w*|pre-?filled|non-?ionic")
_NO_AGENT: Final = re.compile(
    r"^\W*$|(?<![a-z])(no|non|not|none|nil|nothing|without|w/?o|sin|sem|sans|senza|ohne|kein\w*|geen|zonder|brak|bez|yok"
    r"|nessun\w*|nenhum\w*|ningun\w*|aucun\w*|ingen|hayir|nie|utan|unknown|null|false|nc|n/?a|n|x|nacl|saline|nein|pre"
    r"|nativ\w*)(?![a-z])|^\W*0+([.,]0*)?(?![.,\d])(?!\w*\d)|(?<![\d.,])0 ?ml"
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


def is_not_fit(text: str) -> bool:
    """Tell whether a name says that the images are not to be used."""
    return bool(_NOT_FIT.search(_plain(text)))


def is_agent(text: str) -> bool:
    """Tell whether what stands for the contrast agent is one; many sites write that there was none."""
    return not _NO_AGENT.search(_HARMLESS_AGENT.sub(" ", _folded(text)))


def _plain(text: str) -> str:
    return _HARMLESS.sub(" ", _folded(text)).strip()


def _folded(text: str) -> str:
    """Give small letters without accents."""
    apart = unicodedata.normalize("NFKD", text.lower().replace("ı", "i").replace("ł", "l"))
    return "".join(c for c in apart if not unicodedata.combining(c))
