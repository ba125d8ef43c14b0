"""Models of two stacks: an encoder that reads the whole prompt, a decoder that writes (Raffel et al. 2020, "T5")."""
