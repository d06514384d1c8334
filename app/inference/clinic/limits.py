"""Where an exam as scanned is refused, and where the numbers come from; those of slices are in `app.dicom.geometry`.

First guesses from four exams. Pairs of one patient had a mutual information of -0.63 to -0.98 after registration,
another patient's sequence -0.40, a mirrored one -0.59 where it had -0.73 the right way round.
"""

from __future__ import annotations

from typing import Final

#: Mutual information after registration that is too weak, and by how much it may be worse than before.
WEAKEST_INFORMATION: Final = -0.5
WORSE_INFORMATION: Final = 0.02
#: Lead that one of both sides must have, right way round or mirrored; right pairs led by 0.08 or more.
LEAST_LEAD: Final = 0.02
#: Share of the mutual information that registration must gain to move a sequence off a common grid.
LEAST_GAIN: Final = 0.01
#: Millimetres by which two starts of one registration may end apart.
WIDEST_SPREAD_MM: Final = 2.0
#: Millilitres of a brain, the share of it that each sequence must show, and how well masks of two sequences agree.
#: Adults have 1,000 to 1,900 ml; share and Dice are those of four exams, rounded down.
BRAIN_ML: Final = (700.0, 2200.0)
LEAST_COVERAGE: Final = 0.9
LEAST_DICE: Final = 0.9
#: Part of a brain's largest section above which it is cut where its grid ends; a brain stem has about 0.05 of it.
CUT_SHARE: Final = 0.1
#: Share of the brain that a sequence may not show without a word.
UNSAID_SHARE: Final = 0.02
#: Millimetres that a mask may lie off one of the sequences on whose grid it is.
MASK_SLIP_MM: Final = 1.0
#: Share of exact zeros from which on a sequence is stripped already; scans with skull had 4 to 60 %.
STRIPPED: Final = 0.8
