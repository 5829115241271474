"""Reports in, evidence out: what a report says of each finding, how sure it is, and which words say so.

The parts are pure and stand in reading order: sections, sentences, lexicon (data), mentions, scope, resolve, engine.
Only ``extract`` touches files.
"""
