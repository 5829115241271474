"""A report in, evidence out: what it says of each finding, how sure it is, and which words say so.

The parts are pure and stand in reading order: sections, sentences, lexicon (data), mentions, groups, reach, scope,
resolve, engine.
Files, processes and other readers are in :mod:`repgls_jax.extraction`.
"""
