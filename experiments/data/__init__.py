"""Long conversations with ground truth, made offline: text, facts, sound, log-mel, units, and packing into positions.

`spec.ConversationSpec`, `synthetic.build_conversations`, `packing.pack`; see README.md. Nothing is imported here: a
recipe can name a spec without loading the libraries that make the data.
"""
