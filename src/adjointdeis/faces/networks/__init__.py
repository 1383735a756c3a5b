"""Network architectures, with the state-dict keys of the official checkpoints they must load."""

from adjointdeis.faces.networks.adaface import AdaFace, AdaFaceConfig
from adjointdeis.faces.networks.diffae import DiffAE, DiffAEConfig
from adjointdeis.faces.networks.iresnet import IResNet, IResNetConfig
from adjointdeis.faces.networks.morph_net import MorphNet, MorphNetConfig
from adjointdeis.faces.networks.stylegan2 import StyleGAN2, StyleGAN2Config
from adjointdeis.faces.networks.vgg import VGG16, VGG16Config

Network = AdaFace | DiffAE | IResNet | MorphNet | StyleGAN2 | VGG16

__all__ = [
    "VGG16",
    "AdaFace",
    "AdaFaceConfig",
    "DiffAE",
    "DiffAEConfig",
    "IResNet",
    "IResNetConfig",
    "MorphNet",
    "MorphNetConfig",
    "Network",
    "StyleGAN2",
    "StyleGAN2Config",
    "VGG16Config",
]
