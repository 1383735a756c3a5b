"""Face recognisers with gradients, and how an aligned image becomes their input."""
