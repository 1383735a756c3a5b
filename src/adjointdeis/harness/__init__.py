"""The only room that imports hydra, lightning and wandb: tasks, training, runs, assets."""
