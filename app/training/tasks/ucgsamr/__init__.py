"""The task `ucgsamr`: exams made of lesion and tissue maps, and back, from unpaired slices."""

from app.training.tasks.cgsamr.unpaired import UcgSamrTask

TASK = UcgSamrTask
