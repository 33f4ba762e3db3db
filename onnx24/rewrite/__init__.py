"""How an edit of the graph is carried out: what a pass does once it has found its sites and asked.

A rewriter works on a view of the document and on the decision of an analysis. It asks nobody and
records nothing: which sites are transformed, and what is said about them, is the pass's business.
"""
