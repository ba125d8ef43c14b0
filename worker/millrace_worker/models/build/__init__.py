"""From a spec to the operators of one rank: a module for each idea, each part chosen by the type of its kind."""
