"""The task `cgsamr`: exams made of lesion maps and an atlas, from paired slices."""

from app.training.tasks.cgsamr.paired import CgSamrTask

TASK = CgSamrTask
