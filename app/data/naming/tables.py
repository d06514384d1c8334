"""Hold the words that names of files and folders are made of, lower case.

`app.data.naming.names` reads names by these tables.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: After a T1, `post` and its like say that it was acquired with contrast agent.
CONTRAST_WORDS: Final = _words(
    """
    ce gd gad gado gadolinium post postgd postgad postgado postgadolinium postcontrast postcon postc contrast
    contrasted enhanced contrastenhanced cenhanced km mitkm mdc inj injected gadovist gadobutrol dotarem magnevist
    multihance prohance omniscan gddtpa agent + +c +ce +gd +gad +km c+ gd+ ce+ plusc plusgd wcontrast withcontrast
    withgd withgad
    """
)
#: After a T1, these say that no agent was given.
NATIVE_WORDS: Final = _words(
    """
    n nat native pre pregd pregad precontrast precon prec unenhanced nonenhanced nocontrast noncontrast nogd nogad
    noce nonce nongd wo wogd wocontrast withoutcontrast withoutgd plain nativ -c c- gd-
    """
)
#: Before a word for contrast, these turn it round (`pre contrast`).
NEGATIONS: Final = _words("pre non no not without wo w/o ohne")
#: After `post` or `pre`, these speak of a treatment, not of contrast agent.
TREATMENTS: Final = _words(
    """
    op opz operative operation surgery surgical rt radio radiotherapy chemo treatment treat tx therapy rx biopsy
    """
)
#: `post` and `pre` alone may mean contrast agent or a treatment; both are read as contrast where only T1 bears them.
TIME_WORDS: Final = _words("post pre")
#: Words for a T2-FLAIR by themselves.
FLAIR_WORDS: Final = _words(
    """
    flair fla fl t2f flairw flr darkfluid 3dflair flair3d 2dflair flair2d cubeflair flaircube spaceflair flairspace
    vistaflair
    """
)
#: Words on orientation, pulse sequence and the like, which change nothing for us.
NEUTRAL_WORDS: Final = _words(
    """
    w wi weighted wtd ax axi axial tra trans transversal transverse sag sagittal cor coronal 3d 2d se tse fse ge gre
    ffe tfe tfl flash spgr fspgr bravo mprage mpr mp space cube vista brainview iso isotropic 1mm fs fatsat spair
    spir mr mri mrt image img nii nifti scan series vol volume head neuro ir irfse blade propeller hd fluid
    """
)
#: Words for an image without skull: the best version for Tetrad.
STRIPPED_WORDS: Final = _words(
    """
    brain bet hdbet hd-bet synthstrip stripped skullstripped skullstrip skullless strip ss noskull deskulled
    brainextracted betted extracted
    """
)
#: Words for another version of the same scan.
VERSION_WORDS: Final = _words(
    """
    n4 n4itk bias biascorr biascorrected biascorrection corrected corr unbiased denoised susan smoothed reg
    registered regist coreg coregistered coregister aligned realigned r w rw r2s reslice resliced resampled resamp
    res rai lps ras lpi rpi mni mni152 sri sri24 atlas atlasspace norm normalized normalised nyul zscore final
    preproc preprocessed processed proc clean brats bratsspace native-space crop cropped pad padded std standard
    reoriented reorient reo warped
    """
)
#: Words for a version that another is preferred to.
RAW_WORDS: Final = _words(
    """
    unstripped nonstripped unskulled orig original raw defaced deface skull withskull wskull head unregistered noreg
    native_space unprocessed
    """
)
#: Words that lead to the image a scan was registered to.
TARGET_WORDS: Final = _words("to 2 onto in into on2 reg2 regto registeredto space")
#: Words that may stand between a subject's name and the sequence.
LEADING_WORDS: Final = (
    _words("ax axi axial tra sag sagittal cor coronal 3d 2d mr mri n4 reg registered coreg r hd") | STRIPPED_WORDS
)
#: The words for contrast agent that may stand before the sequence as well (`CE_T1`).
LEADING_CONTRAST_WORDS: Final = _words("ce gd gad gado gadolinium contrast enhanced postcontrast postgd postgad km +c")
#: Places and images that a scan is registered to.
TARGETS: Final = (
    "t1",
    "t2",
    "flair",
    "mni",
    "sri",
    "atlas",
    "std",
    "template",
    "ct1",
    "t1c",
    "t1ce",
    "dwi",
    "pet",
    "ct",
)
#: Words for images that are no structural sequence of ours.
OTHER_WORDS: Final = _words(
    """
    seg segm segs segmentation segmentations segmented dseg probseg mask masks brainmask tumormask label labels
    labelmap roi rois lesion lesions contour gt groundtruth ot aseg aparc wmparc parcellation pve prob probability
    fast tissue glistrboost manuallycorrected adc dwi dti fa md rd ad tr trace ev1 l1 l2 l3 l1l2l3 swi swan qsm
    phase pha phasediff asl cbf cbv rcbv cmro2 mtt ttp tmax att ktrans dsc dce perf perfusion pwi ph psr rsi bold
    rest task fmap fieldmap epi sbref b0 b50 b100 b500 b700 b800 b1000 b1500 b2000 bval bvec eddy noddi icvf isovf
    mo od tof mra mrv angio angiography venogram pd pdw proton pdt2 ct cta pet suv fdg fet sub subtraction
    subtracted subtr diff difference synth synthetic synthesized synthesised synthesis simulated predicted
    prediction pred generated fake confidence uncertainty map t1map t2map t1rho t2star t2starw t2s t2sw t2* r2star
    r2 mtr mt mtw mtoff mton megre meg mese mp2rage unit1 uni inv1 inv2 irt1 vfa tb1 tb1tfl b1 b1map swir scout
    localizer localiser loc survey warp xfm transform biasfield jacobian qc overlay hippo hippocampus caudate
    amygdala template spectroscopy mrs csi elastography mre cest apt aptw stir dir psir ciss fiesta inplanet1
    inplanet2 defacemask m0scan magnitude magnitude1 magnitude2 phase1 phase2 events physio
    """
)
#: Words that are a mask also where they stand before the sequence (`mask_T1`).
LEADING_OTHER_WORDS: Final = _words("seg segmentation mask label labels lesion roi subtraction synth synthetic pred")
#: Folders that a system keeps for itself, or that hold what was thrown away.
SYSTEM_FOLDERS: Final = _words(
    """
    lost+found @eadir #recycle #snapshot @recycle @recently-snapshot $recycle.bin recycler __macosx .trash .trashes
    system_volume_information @tmp @sharebin aquota.group aquota.user .snapshot .snapshots
    """
) | {"system volume information"}
#: Folders that only hold a subject's images, and say nothing of them.
CONTAINER_FOLDERS: Final = _words(
    """
    nifti niftis nii niigz anat anatomical mr mri mrt image images imaging img scans structural struct raw rawdata
    data unprocessed volumes nifti_files
    """
)
#: Parts of a BIDS tree that repeat or precede the raw images.
NOT_RAW_FOLDERS: Final = _words("derivatives sourcedata")
