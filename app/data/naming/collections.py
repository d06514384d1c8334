"""Show how public collections and common tools name their files.

`docs/names.md` is made from this table, and every row of it is a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from app.core.constants import Modality


@dataclass(frozen=True)
class Collection:
    """Show how a public collection, or a tool, names its files.

    Attributes:
        title: as the field calls it.
        files: an example of each sequence, with its folders.
        others: examples of files that are passed over.
        note: what a reader should know.
    """

    title: str
    files: dict[str, Modality]
    others: tuple[str, ...] = ()
    note: str = ""


COLLECTIONS: Final = (
    Collection(
        "BraTS and BraSyn 2023 to 2025",
        {"BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz": "t1n",
         "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1c.nii.gz": "t1c",
         "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2w.nii.gz": "t2w",
         "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz": "t2f"},
        ("BraTS-GLI-00001-000/BraTS-GLI-00001-000-seg.nii.gz",),
    ),
    Collection(
        "BraTS 2017 to 2021",
        {"BraTS2021_00000/BraTS2021_00000_t1.nii.gz": "t1n", "BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz": "t1c",
         "BraTS2021_00000/BraTS2021_00000_t2.nii.gz": "t2w", "BraTS2021_00000/BraTS2021_00000_flair.nii.gz": "t2f"},
        ("BraTS2021_00000/BraTS2021_00000_seg.nii.gz",),
    ),
    Collection(
        "BraTS 2012 to 2015",
        {"brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1.54513/VSD.Brain.XX.O.MR_T1.54513.mha": "t1n",
         "brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1c.54514/VSD.Brain.XX.O.MR_T1c.54514.mha": "t1c",
         "brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T2.54515/VSD.Brain.XX.O.MR_T2.54515.mha": "t2w",
         "brats_2013_pat0001_1/VSD.Brain.XX.O.MR_Flair.54512/VSD.Brain.XX.O.MR_Flair.54512.mha": "t2f"},
        ("brats_2013_pat0001_1/VSD.Brain_3more.XX.O.OT.54517/VSD.Brain_3more.XX.O.OT.54517.mha",),
        "the subject takes its folder's name",
    ),
    Collection(
        "BraTS-Toolkit",
        {"exam01/exam01_t1.nii.gz": "t1n", "exam01/exam01_t1c.nii.gz": "t1c", "exam01/exam01_t2.nii.gz": "t2w",
         "exam01/exam01_fla.nii.gz": "t2f"},
    ),
    Collection(
        "HD-GLIO, HD-GLIO-AUTO",
        {"case/T1_r2s_bet_reg.nii.gz": "t1n", "case/CT1_r2s_bet_reg.nii.gz": "t1c", "case/T2_r2s_bet_reg.nii.gz": "t2w",
         "case/FLAIR_r2s_bet_reg.nii.gz": "t2f"},
        ("case/segmentation.nii.gz",),
    ),
    Collection(
        "LUMIERE",
        {"Patient-001/week-000/T1.nii.gz": "t1n", "Patient-001/week-000/CT1.nii.gz": "t1c",
         "Patient-001/week-000/T2.nii.gz": "t2w", "Patient-001/week-000/FLAIR.nii.gz": "t2f"},
        note="subjects are Patient-001_week-000 and so on",
    ),
    Collection(
        "UCSF-PDGM",
        {"UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1.nii.gz": "t1n",
         "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1c.nii.gz": "t1c",
         "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T2.nii.gz": "t2w",
         "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR.nii.gz": "t2f"},
        ("UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_SWI.nii.gz", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_DTI_eddy_FA.nii.gz",
         "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz"),
    ),
    Collection(
        "UCSF-BMSR",
        {"100101A/100101A_T1pre.nii.gz": "t1n", "100101A/100101A_T1post.nii.gz": "t1c",
         "100101A/100101A_FLAIR.nii.gz": "t2f"},
        ("100101A/100101A_T2Synth.nii.gz", "100101A/100101A_subtraction.nii.gz", "100101A/100101A_seg.nii.gz"),
        "T2Synth is synthetic and never used as a T2w",
    ),
    Collection(
        "UCSD-PTGBM",
        {"UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_T1pre.nii.gz": "t1n",
         "UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_T1post.nii.gz": "t1c",
         "UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_T2.nii.gz": "t2w",
         "UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_FLAIR.nii.gz": "t2f"},
        ("UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_ADC.nii.gz",
         "UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_total_cellular_tumor_seg.nii.gz"),
    ),
    Collection(
        "UPENN-GBM",
        {"images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_T1.nii.gz": "t1n",
         "images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_T1GD.nii.gz": "t1c",
         "images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_T2.nii.gz": "t2w",
         "images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_FLAIR.nii.gz": "t2f"},
        ("images_structural_unstripped/UPENN-GBM-00001_11/UPENN-GBM-00001_11_T1_unstripped.nii.gz",
         "images_segm/UPENN-GBM-00001_11_segm.nii.gz",
         "images_DTI/UPENN-GBM-00001_11/UPENN-GBM-00001_11_DTI_FA.nii.gz"),
    ),
    Collection(
        "Erasmus Glioma Database (EGD)",
        {"EGD-0265/1_T1/NIFTI/T1.nii.gz": "t1n", "EGD-0265/2_T1GD/NIFTI/T1GD.nii.gz": "t1c",
         "EGD-0265/3_T2/NIFTI/T2.nii.gz": "t2w", "EGD-0265/4_FLAIR/NIFTI/FLAIR.nii.gz": "t2f"},
        ("EGD-0265/5_MASK/NIFTI/MASK.nii.gz",),
        "one folder per sequence",
    ),
    Collection(
        "UK Biobank",
        {"1000001/T1/T1_brain.nii.gz": "t1n", "1000001/T2_FLAIR/T2_FLAIR_brain.nii.gz": "t2f"},
        ("1000001/T1/T1_brain_mask.nii.gz", "1000001/T1/T1_fast/T1_brain_pve_0.nii.gz", "1000001/SWI/SWI.nii.gz"),
        "of several versions the one without skull is used",
    ),
    Collection(
        "CaPTk, FeTS",
        {"AAAC/T1_to_SRI_brain.nii.gz": "t1n", "AAAC/T1CE_to_SRI_brain.nii.gz": "t1c",
         "AAAC/T2_to_SRI_brain.nii.gz": "t2w", "AAAC/FL_to_SRI_brain.nii.gz": "t2f"},
        ("AAAC/brainTumorMask_SRI.nii.gz", "AAAC/brainMask_SRI.nii.gz"),
    ),
    Collection(
        "TCGA-GBM, TCGA-LGG (TCIA)",
        {"TCGA-02-0006/TCGA-02-0006_1996.08.23_t1.nii.gz": "t1n",
         "TCGA-02-0006/TCGA-02-0006_1996.08.23_t1Gd.nii.gz": "t1c",
         "TCGA-02-0006/TCGA-02-0006_1996.08.23_t2.nii.gz": "t2w",
         "TCGA-02-0006/TCGA-02-0006_1996.08.23_flair.nii.gz": "t2f"},
        ("TCGA-02-0006/TCGA-02-0006_1996.08.23_GlistrBoost_ManuallyCorrected.nii.gz",),
    ),
    Collection(
        "MSLesSeg",
        {"P1/T1/P1_T1_T1.nii.gz": "t1n", "P1/T1/P1_T1_T2.nii.gz": "t2w", "P1/T1/P1_T1_FLAIR.nii.gz": "t2f"},
        ("P1/T1/P1_T1_MASK.nii.gz",),
        "the first T1 or T2 of a name is a time point; it has no T1c",
    ),
    Collection(
        "BIDS",
        {"sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz": "t1n", "sub-01/ses-1/anat/sub-01_ses-1_ce-gd_T1w.nii.gz": "t1c",
         "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz": "t2w", "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz": "t2f"},
        ("sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",),
        "without `ce-`, an `acq-` of gad, gd, ce or post marks contrast as well",
    ),
)  # fmt: skip
