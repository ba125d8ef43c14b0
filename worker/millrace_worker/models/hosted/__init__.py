"""Models that run on transformers' own code (or code that comes with the model), behind the engine's `Model`.

Only this package imports transformers, and only when a model is loaded: a native start never pays for it.
"""
