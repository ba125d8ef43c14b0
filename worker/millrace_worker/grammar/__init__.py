"""Keeps the text of a row inside a grammar: which tokens may come next, while the forward pass runs.

    vocabulary = read_vocabulary(folder)                      # the tokens' bytes, once per process
    grammars = GrammarRows(max_rows, vocabulary, vocab_size, workspace)
    grammars.admit(row, sampling, num_prompt_tokens, output)  # compiled beside everything else
    grammars.begin(rows, positions)                           # the masks are made while the model computes …
    grammars.apply(logits_RV)                                 # … and awaited here
    grammars.advance(token_ids_R)                             # what was sampled

A matcher that fails fails its own sequence (`GrammarRows.failures`); no other row notices. Only rank 0 samples, so only
rank 0 has matchers. Grammars and their states are llguidance's.
"""

from millrace_worker.grammar.absent import NoGrammars
from millrace_worker.grammar.matchers import FULL_LEXER_BYTES, host_bytes
from millrace_worker.grammar.rows import GrammarRows
from millrace_worker.grammar.vocabulary import Vocabulary, VocabularyError, read_vocabulary

__all__ = [
    "FULL_LEXER_BYTES",
    "GrammarRows",
    "NoGrammars",
    "Vocabulary",
    "VocabularyError",
    "host_bytes",
    "read_vocabulary",
]
