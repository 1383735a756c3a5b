"""Licence-clean synthetic faces: a 3-D head with named shape axes, rendered from integer seeds.

The head and its shape targets are CC0 MakeHuman data (see ``data/ATTRIBUTION.md``); no photograph
of a person is involved. The chain is ``sample_identity`` -> ``sample_capture`` -> ``Renderer``;
``render_pool`` turns it into a resumable set of images on disk. README.md shows how.

When not to use: the pictures look like computer graphics, the ancestry axes are stylised, and no
score threshold found on them transfers to photographs.
"""
