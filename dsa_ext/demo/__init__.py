"""`python -m dsa_ext.demo`: a few DSA attention layers over real text, to look at what sparse attention does.

Nothing is trained and nothing is downloaded. The text is Python's own documentation, as the standard library ships it;
a sentence is planted in it, and the text ends as if that sentence were said again: which tokens does the indexer pick
for the last one? Weights are made by hand (see `model`), for random ones pick tokens at random.
"""
