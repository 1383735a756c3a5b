"""Experiments: tasks, trainings, runs and assets; all that needs hydra, lightning or wandb."""

from adjointdeis.extras import require

require("experiments", "experiments")
