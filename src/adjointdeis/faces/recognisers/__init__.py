"""Face recognisers, with gradients and without, and how an image becomes their input."""
