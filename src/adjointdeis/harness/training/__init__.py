"""Training of the embedded networks: Lightning modules, data, and the tasks that run them."""
