"""Entry point: compose a configuration, then run its task.

python run.py --help
python run.py +experiment=quickstart
"""

import os

# Threads that spin while they wait bring a busy machine to a halt; set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from adjointdeis.terminal import prepare

prepare()  # before the imports below, which take seconds: Ctrl-C is one line there too

import hydra
from omegaconf import DictConfig

from adjointdeis.harness.command_line import checked
from adjointdeis.harness.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs the task of a composed configuration."""
    return launch(cfg)


if __name__ == "__main__":
    with checked("conf"):
        main()
