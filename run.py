import hydra
from hydra.utils import get_method

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    import lightning as L
    if cfg.seed is not None: L.seed_everything(cfg.seed)
    print(get_method(cfg.task._target_)(cfg))
if __name__ == "__main__": main()
