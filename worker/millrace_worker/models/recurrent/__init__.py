"""Recurrent models: what they know of a sequence is a state of fixed size, which lies in its row."""
